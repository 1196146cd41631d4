"""Numbers that do not fit the type they are to be written in are refused by `convert` and `merge`."""

import pytest
import torch
from safetensors.torch import save_file

from glmspectra.checkpoint.reader import open_checkpoint
from glmspectra.checkpoint.writing.casting import cast
from glmspectra.checkpoint.writing.convert import convert
from glmspectra.checkpoint.writing.merge import merge
from glmspectra.errors import CheckpointError
from tests.checkpoint.test_adapter_config import FACTORS, PLAIN, write

HALF, BRAIN, SINGLE, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64


@pytest.mark.parametrize(
    ("value", "stored", "wanted", "said"),
    [
        (1e6, BRAIN, HALF, "and float16 ends at"),
        (65504.0, SINGLE, HALF, None),
        (1e200, DOUBLE, SINGLE, r"holds 1e\+200"),
        (1e-9, SINGLE, HALF, "float16 rounds to 0"),
        (1e-7, SINGLE, HALF, None),
        (float("inf"), SINGLE, HALF, None),  # as stored
        (float("nan"), SINGLE, HALF, None),
        (0.0, SINGLE, HALF, None),
    ],
)
def test_what_does_not_fit_is_refused(value, stored, wanted, said):
    tensor = torch.zeros(3, 2, dtype=stored)
    tensor[1, 1] = value
    if said is None:
        assert torch.equal(cast(tensor, wanted, "w").nan_to_num(7), tensor.to(wanted).nan_to_num(7))
    else:
        with pytest.raises(CheckpointError, match=said):
            cast(tensor, wanted, "w")


def test_one_that_overflows_beside_numbers_that_are_none_is_seen():
    with pytest.raises(CheckpointError, match=r"holds 1e\+06"):
        cast(torch.tensor([float("nan"), float("inf"), 1e6]), HALF, "w")


def test_convert_and_merge_write_nothing_then(tmp_path):
    (tmp_path / "base").mkdir()
    save_file({"q.weight": torch.ones(4, 6), "k.weight": torch.full((4, 6), 1e6)}, tmp_path / "base/model.safetensors")
    with (
        open_checkpoint(tmp_path / "base") as checkpoint,
        pytest.raises(CheckpointError, match=r"k\.weight: holds 1e\+06"),
    ):
        convert(checkpoint, tmp_path / "converted", "float16")
    adapter = write(tmp_path / "adapter", PLAIN, FACTORS)
    with pytest.raises(CheckpointError, match=r"k\.weight: holds 1e\+06"):
        merge(tmp_path / "base", adapter, tmp_path / "merged", HALF)
    assert not (tmp_path / "converted").exists()
    assert not (tmp_path / "merged").exists()
