"""Data files that somebody else wrote: every fault of a table or a saved dataset is one sentence of ours, in bounds."""

import gzip
import json
import os
from contextlib import suppress

import datasets
import pytest
import torch

from glmspectra.checkpoint.formats.bitsandbytes import parse_state
from glmspectra.errors import CheckpointError, DataError, GlmspectraError
from glmspectra.tuning.data import read
from glmspectra.tuning.data.read import find_sources, read_file
from glmspectra.tuning.data.rows import BadRow, Columns


def test_a_header_of_a_table_that_is_broken(tmp_path):
    path = tmp_path / "d.csv"
    path.write_text('"context,target\na,b\n')
    with pytest.raises(DataError, match="its header is broken CSV"):
        read_file(path, Columns())


def test_a_line_of_a_table_beyond_the_bound_is_a_bad_row_and_the_next_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(read, "LONGEST_LINE", 100)
    path = tmp_path / "d.csv.gz"
    path.write_bytes(gzip.compress(b"context,target\n" + b"x" * 1000 + b"\na,b\n"))
    rows = read_file(path, Columns())
    assert isinstance(rows[0], BadRow)
    assert "a line of more than 100 characters" in rows[0].reason
    assert len(rows) == 2
    assert not isinstance(rows[1], BadRow)


@pytest.fixture
def saved(tmp_path):
    datasets.Dataset.from_dict({"context": ["a"], "target": ["b"]}).save_to_disk(str(tmp_path / "saved"))
    return tmp_path / "saved"


@pytest.mark.parametrize("name", ["state.json", "dataset_info.json"])
@pytest.mark.parametrize("value", [[1], {"_data_files": 5}, {"_data_files": [{"filename": 3}]}, None, "x", 10**30])
def test_a_saved_dataset_of_wrong_types(saved, name, value):
    (saved / name).write_text(json.dumps(value))
    if name == "state.json":  # without it nothing can be read
        with pytest.raises(DataError, match="cannot be opened as a saved dataset"):
            find_sources(saved)
    else:
        with suppress(DataError):
            find_sources(saved)


def test_a_pipe_in_a_saved_dataset_is_not_waited_for(saved):
    (saved / "state.json").unlink()
    os.mkfifo(saved / "state.json")
    with pytest.raises(GlmspectraError):
        find_sources(saved)


@pytest.mark.parametrize("raw", [torch.ones(3), torch.full((4,), -1), torch.zeros(2, 2, dtype=torch.uint8)])
def test_the_state_of_four_bits_that_is_no_row_of_bytes(raw):
    with pytest.raises(CheckpointError, match="no row of bytes"):
        parse_state("w", raw)


@pytest.mark.parametrize("text", ["[]", '"x"', "3", "[" * 200_000, '{"quant_type": "nf4", "blocksize": NaN}', "null"])
def test_the_state_of_four_bits_that_is_no_object(text):
    raw = torch.tensor(list(text.encode()[:60_000]), dtype=torch.uint8)
    with pytest.raises(CheckpointError, match="the quantization state of w"):
        parse_state("w", raw)
