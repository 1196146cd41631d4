"""Libraries fetch nothing from a hub while they are imported, and load no compiler and no scipy that no one calls."""

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
assert "scipy" not in sys.modules, "the losses of object detection have loaded it"
assert transformers.utils.is_scipy_available()
import gc
assert gc.isenabled() and gc.get_freeze_count() > 100_000
assert "torch._inductor.compile_fx" not in sys.modules, "bitsandbytes has set up torch's compiler"
import torch
from unittest.mock import patch
from bitsandbytes.backends.default.ops import _dequantize_blockwise_compute as compiled
with patch("torch.compile", side_effect=lambda function, **settings: function) as compile:
    found = [compiled(torch.tensor([1, 0]), torch.ones(1), torch.tensor([2.0, 3.0]), 2, torch.float32) for _ in "ab"]
assert [numbers.tolist() for numbers in found] == [[3.0, 2.0]] * 2
assert compile.call_count == 1 and compile.call_args.kwargs == {"dynamic": False}
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
