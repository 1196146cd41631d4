# `glmspectra doctor`.

doctor-well = 这里一切正常。
doctor-faults =
    { $count ->
       *[other] 有 { $count } 处必须修好，标有 ✗。
    }
doctor-extra = 没有安装；只有部分命令需要：pip install '{ $wanted }'
doctor-missing = 没有安装：pip install { $name }
doctor-version = 装的是 { $version }，测试过的是 { $wanted }：pip install '{ $wanted }'
doctor-no-gpu = torch 看不到 CUDA 设备；测量可以在处理器上做，训练会很慢。有英伟达显卡请装驱动，以及带 CUDA 的 torch。
doctor-gpu = { $name }，{ $size }，用 { $dtype } 训练
doctor-four-bit = 没有安装，所以不能用 4 位基座（QLoRA）：pip install bitsandbytes
doctor-kernels = 没有安装，所以用普通算子；它随 torch 的 Linux CUDA 版一起安装
doctor-broken = 装了但不能用（{ $error }）：请按它的文档为你的 CUDA 版本重装
doctor-works = 可用
doctor-disk = { $folder } 还有 { $free } GiB 空闲
doctor-little-disk = ；ChatGLM2-6B 加上转换和合并的副本约需 30
doctor-no-fonts = 没有中文字体（{ $names }），SVG 文件（--svg）使用英文；页面不受影响（apt install fonts-noto-cjk）
doctor-encoding = 输出编码是 { $encoding }，其外的字符会被替换；设 PYTHONUTF8=1 即可全部显示
