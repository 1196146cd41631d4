"""Rows, tables and folders that are odd: two names of one thing, zero bytes, cut frames, pieces that are missing."""

import json
import shutil

import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest
from datasets import Dataset

from glmspectra.errors import DataError
from glmspectra.tuning.data.read import find_sources, read_dataset, read_file
from glmspectra.tuning.data.recognize import FileFacts, parse_row
from glmspectra.tuning.data.rows import BadRow, Columns


@pytest.mark.parametrize(
    ("turn", "said"),
    [
        ({"role": "user", "from": "gpt", "content": "a"}, "role and from, which differ"),
        ({"role": "user", "content": "a", "value": "b"}, "content and value, which differ"),
    ],
)
def test_two_names_of_one_thing_that_differ_are_refused(turn, said):
    row = parse_row("f", 1, {"messages": [turn, {"role": "assistant", "content": "b"}]}, Columns())
    assert isinstance(row, BadRow)
    assert said in row.reason


def test_null_under_the_other_name_is_what_tables_hold():
    rounds = [
        {"from": "human", "value": "a", "role": None, "content": None},
        {"role": "assistant", "content": "b", "from": None, "value": None},
    ]
    assert parse_row("f", 1, {"messages": rounds}, Columns()).turns == (("user", "a"), ("assistant", "b"))


def test_a_history_of_messages_says_what_is_not_learnt_and_what_is_not_read():
    facts = FileFacts("f")
    history = [{"role": "user", "content": "a", "name": "x"}, {"role": "assistant", "content": "b", "loss": False}]
    value = {"prompt": "c", "response": "d", "history": history, "system": "s"}
    row = parse_row("f", 1, value, Columns(), facts)
    assert [row.turns[index] for index in row.silent] == [("assistant", "b")]
    assert facts.unread == {"name of a turn": 1}


def test_zero_characters_are_no_text_and_empty_questions_are_counted():
    facts = FileFacts("f")
    assert "zero character" in parse_row("f", 1, {"context": "a\0", "target": "b"}, Columns(), facts).reason
    parse_row("f", 2, {"context": "", "target": "b"}, Columns(), facts)
    assert facts.lines()[-1] == "f: 1 row with an empty question, which is learnt as it is"


def test_zstandard_as_pzstd_writes_it_and_cut(tmp_path):
    """Frames one behind the other, a note before them; pyarrow's own stream is what writes and what reads."""
    lines = [json.dumps({"context": f"q{n}", "target": f"a{n}"}) for n in range(500)]
    frames = [pyarrow.compress("\n".join(part).encode() + b"\n", codec="zstd", asbytes=True)
              for part in (lines[:200], lines[200:])]  # fmt: skip
    note = bytes.fromhex("502a4d1804000000") + b"note"
    path = tmp_path / "rows.jsonl.zst"
    path.write_bytes(note + frames[0] + note + frames[1])
    assert [row.turns[0][1] for row in read_file(path, Columns())] == [f"q{n}" for n in range(500)]
    path.write_bytes(note + frames[0] + frames[1][:-3])
    with pytest.raises(DataError, match="zstandard"):
        read_file(path, Columns())


def test_a_row_of_a_table_that_is_short_is_a_bad_one(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("context,target,history\na,b\nc,d,\n")
    short, whole = read_file(path, Columns())
    assert short.reason == "has fewer fields than the header"
    assert whole.turns[0] == ("user", "c")


@pytest.mark.parametrize("name", ["label", "kto_tag"])
def test_an_answer_that_is_judged_bad_is_not_learnt(name):
    """KTO's rows say of each answer whether it is one to give; a class that is called label is none of that."""
    row = {"prompt": "a", "completion": "b"}
    bad = parse_row("x", 1, row | {name: False}, Columns())
    assert bad.reason == f"{name} is false: its answer is one that is not to be given"
    for value in (True, 0, 1, "no", None):
        assert parse_row("x", 1, row | {name: value}, Columns()).turns[-1][1] == "b"


def test_arrow_is_read_as_a_stream_and_as_a_file(tmp_path):
    """What `datasets` saved, by its one file, and Feather; under another suffix both are named."""
    rows = [{"context": f"问{number}", "target": "答" * number} for number in range(1, 2500)]
    Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    (stream,) = (tmp_path / "saved").glob("*.arrow")
    pyarrow.feather.write_feather(pyarrow.Table.from_pylist(rows), tmp_path / "rows.feather")
    for path in (stream, tmp_path / "rows.feather"):
        read = read_file(path, Columns())
        assert [(row.turns[0][1], row.turns[-1][1]) for row in read] == [
            (row["context"], row["target"]) for row in rows
        ]
        shutil.copy(path, tmp_path / "rows.jsonl")
        with pytest.raises(DataError, match=r"an Arrow (stream|file); give it the suffix \.arrow"):
            read_file(tmp_path / "rows.jsonl", Columns())
        (tmp_path / "short.arrow").write_bytes(path.read_bytes()[:-3000])
        with pytest.raises(DataError, match="cannot be read as Arrow"):
            read_file(tmp_path / "short.arrow", Columns())


def test_a_column_that_is_there_twice_in_a_table_is_refused(tmp_path):
    names = ["context", "target", "target"]
    table = pyarrow.Table.from_arrays([pyarrow.array([name]) for name in "abc"], names=names)
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(DataError, match="the column target is there twice"):
        read_file(tmp_path / "rows.parquet", Columns())


@pytest.mark.parametrize(("numbers", "missing"), [((0, 1, 2), None), ((1, 2, 3), None), ((0, 2), 1), ((1, 3), 2)])
def test_a_piece_that_is_missing_is_told(tmp_path, numbers, missing):
    for number in numbers:
        (tmp_path / f"train-{number:05d}-of-00003.jsonl").write_text('{"context": "a", "target": "b"}\n')
    if missing is None:
        assert len(read_dataset(tmp_path, Columns())["train"]) == 3
    else:
        with pytest.raises(DataError, match=f"number {missing} is not there"):
            read_dataset(tmp_path, Columns())


def test_files_of_other_kinds_beside_the_data_are_named(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"context": "a", "target": "b"}\n')
    (tmp_path / "more.orc").write_bytes(b"x")
    assert find_sources(tmp_path)[1] == [f"{tmp_path}: files that are not read: more.orc"]
