"""Nothing is fetched from a hub by the libraries underneath, and nothing is said about it."""

import subprocess
import sys

import pytest

CODE = """
from glmspectra.cli.main import main
try:
    main(["--version"])
except SystemExit:
    pass
import peft, transformers.utils
assert "bitsandbytes" in sys.modules
assert not transformers.utils.is_kernels_available()
"""


@pytest.mark.slow
def test_kernels_are_fetched_by_no_library_even_where_the_package_is_installed(tmp_path):
    """bitsandbytes asks for them when peft imports it, 4 bits or not (on CPUs with AVX512_BF16)."""
    (tmp_path / "kernels.py").write_text("def get_kernel(*a, **k): print('FETCHED')\nprint('IMPORTED')\n")
    path = f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\n"
    done = subprocess.run([sys.executable, "-c", path + CODE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "IMPORTED" not in done.stdout
    assert "kernels" not in done.stderr
    # The check can fail: the package is there to be imported.
    plain = subprocess.run([sys.executable, "-c", path + "import kernels"], capture_output=True, text=True)
    assert plain.stdout == "IMPORTED\n"
