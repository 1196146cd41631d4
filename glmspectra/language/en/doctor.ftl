# `glmspectra doctor`.

doctor-well = Nothing is wrong here.
doctor-faults =
    { $count ->
        [one] 1 thing must be mended, marked ✗.
       *[other] { $count } things must be mended, marked ✗.
    }
doctor-extra = not installed; only needed for some commands: pip install '{ $wanted }'
doctor-missing = not installed: pip install { $name }
doctor-version = { $version } is installed; tested is { $wanted }: pip install '{ $wanted }'
doctor-no-gpu = torch sees no CUDA device; measuring works on the processor, training is slow. With an NVIDIA card: install its driver, and torch with CUDA.
doctor-gpu = { $name }, { $size }, trains in { $dtype }
doctor-four-bit = not installed, so no 4-bit base (QLoRA): pip install bitsandbytes
doctor-kernels = not installed, so the plain kernels are used; it comes with torch's CUDA builds for Linux
doctor-broken = is installed and does not work ({ $error }): reinstall it in the version that its documents name for your CUDA
doctor-works = works
doctor-disk = { $free } GiB free in { $folder }
doctor-little-disk = {"; "}ChatGLM2-6B, a converted and a merged copy take some 30
doctor-no-fonts = no font for Chinese ({ $names }), so SVG files (--svg) are in English; pages are not concerned (apt install fonts-noto-cjk)
doctor-encoding = writes { $encoding }: characters outside it are replaced; set PYTHONUTF8=1 for all of them
