"""Rows from every form of file, the bad ones by line with their reason, and the split."""

import json
import os

import pytest

from glmspectra.errors import DataError, RequestError
from glmspectra.tuning.data.read import read_dataset, read_file
from glmspectra.tuning.data.row_store import RowStore
from glmspectra.tuning.data.rows import BadRow, Columns, Row
from glmspectra.tuning.data.split import drop_duplicates, split_rows

PAIRS = [{"context": f"问 {n}\n?", "target": f"答, {n}"} for n in range(4)]
EXPECTED = [(("user", pair["context"]), ("assistant", pair["target"])) for pair in PAIRS]


def turns(rows):
    assert all(isinstance(row, Row) for row in rows), [row for row in rows if isinstance(row, BadRow)]
    return [row.turns for row in rows]


def parted(rows):
    """The rows that can be used, and those that cannot."""
    return [row for row in rows if isinstance(row, Row)], [row for row in rows if isinstance(row, BadRow)]


def write(path, form):
    import pandas

    if form == "jsonl":
        path.write_text("\n".join(json.dumps(pair, ensure_ascii=False) for pair in PAIRS), encoding="utf-8")
    elif form == "json":
        path.write_text(json.dumps(PAIRS, indent=1), encoding="utf-8")
    elif form == "csv":
        pandas.DataFrame(PAIRS).to_csv(path, index=False)
    elif form == "tsv":
        pandas.DataFrame(PAIRS).to_csv(path, index=False, sep="\t")
    elif form == "parquet":
        pandas.DataFrame(PAIRS).to_parquet(path)


@pytest.mark.parametrize("form", ["jsonl", "json", "csv", "tsv", "parquet"])
def test_every_form_gives_the_same_rows(tmp_path, form):
    path = tmp_path / f"some.{form}"
    write(path, form)
    rows = read_file(path, Columns())
    assert turns(rows) == EXPECTED
    assert all(row.pair and row.file == path.name for row in rows)


def test_saved_datasets_and_folders(tmp_path):
    from datasets import Dataset, DatasetDict

    saved = DatasetDict({"train": Dataset.from_list(PAIRS), "validation": Dataset.from_list(PAIRS[:1])})
    saved.save_to_disk(tmp_path / "dict.jsonl")  # the study's folder had a name like a file's
    read = read_dataset(tmp_path / "dict.jsonl", Columns())
    assert turns(read["train"]) == EXPECTED
    assert turns(read["valid"]) == EXPECTED[:1]
    saved["train"].save_to_disk(tmp_path / "single")
    assert turns(read_dataset(tmp_path / "single", Columns())["train"]) == EXPECTED
    folder = tmp_path / "folder"
    folder.mkdir()
    write(folder / "train.jsonl", "jsonl")
    write(folder / "dev.csv", "csv")
    read = read_dataset(folder, Columns())
    assert turns(read["train"]) == turns(read["valid"]) == EXPECTED


@pytest.mark.shared
def test_the_real_data_is_the_same_in_both_forms(shared):
    lines = read_dataset(shared / "data/med", Columns())
    saved = read_dataset(shared / "data/med_datasetdict", Columns())
    assert {name: len(rows) for name, rows in lines.items()} == {"train": 6622, "valid": 1000}
    assert turns(lines["train"]) == turns(saved["train"])
    assert turns(lines["valid"]) == turns(saved["valid"])
    assert drop_duplicates(RowStore(lines["train"]), RowStore(lines["valid"]))[1:] == ([], 0)


def test_bad_lines_are_named_with_their_reason(tmp_path):
    path = tmp_path / "train.jsonl"
    good = b'{"context": "a", "target": "b"}'
    lines = [
        b"\xef\xbb\xbf" + good,
        b'{"context": "a"}',
        b"",
        b'{"context": "a", "target": "  "}',
        b'{"context": "a", "target": "' + b"\xff" + b'"}',
        b'{"context": "a", "target": "b"',
        b'["a", "b"]',
        b'{"context": "a", "target": 5}',
        b'{"context": null, "target": "b"}',
        b'{"context": "a", "target": "\\ud800"}',
        good,
    ]
    path.write_bytes(b"\n".join(lines))
    good_rows, bad = parted(read_file(path, Columns()))
    assert [row.line for row in good_rows] == [1, 11]
    assert [str(row) for row in bad] == [
        "train.jsonl, line 2: no target",
        "train.jsonl, line 4: empty target",
        "train.jsonl, line 5: bad UTF-8 at byte 29 of the line",
        "train.jsonl, line 6: the line is not JSON (line 1, column 31: Expecting ',' delimiter)",
        "train.jsonl, line 7: is no object with columns but list",
        "train.jsonl, line 8: target is not text but int",
        "train.jsonl, line 9: no context",
        "train.jsonl, line 10: the line holds half of a surrogate pair (\\ud800 to \\udfff), which is no character",
    ]


def test_bad_lines_of_a_csv(tmp_path):
    path = tmp_path / "train.csv"
    path.write_bytes(b'context,target\na,b\n"two\nlines",c\nx,\xff\ny,\nz,1,2\nlast\n')
    good, bad = parted(read_file(path, Columns()))
    assert [(row.line, row.turns[0][1]) for row in good] == [(2, "a"), (3, "two\nlines")]
    assert [(row.line, row.reason) for row in bad] == [
        (5, "bad UTF-8"),
        (6, "empty target"),
        (7, "has more fields than the header"),
        (8, "has fewer fields than the header"),
    ]


def test_conversations(tmp_path):
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    share = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    rows = [
        {"messages": talk},
        {"messages": [*talk, {"role": "user", "content": "c"}]},
        {"messages": [{"role": "system", "content": "s"}, *talk]},
        {"messages": talk[:1]},
        {"messages": [talk[0], {"role": "assistant", "content": ""}]},
        {"messages": [talk[1]]},
        {"messages": [{"role": "critic", "content": "a"}]},
        {"messages": "a"},
        {"messages": [talk[0], {"role": "assistant"}]},
    ]
    path = tmp_path / "talk.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    good, bad = parted(read_file(path, Columns()))
    assert [row.turns for row in good] == [
        (("user", "a"), ("assistant", "b")),
        (("user", "a"), ("assistant", "b")),
        (("system", "s"), ("user", "a"), ("assistant", "b")),
    ]
    assert not any(row.pair for row in good)
    assert [row.reason for row in bad] == [
        "no turn of the assistant",
        "empty answer of the assistant",
        "user and assistant do not take turns",
        "turn 1 has role 'critic'; known: system, developer, user, human, assistant, gpt, bot, model, chatgpt, tool, "
        "observation, function, function_call",
        "messages is no list of turns",
        "turn 2 has no text",
    ]
    for form in (share, {"from": ["human", "gpt"], "value": ["a", "b"]}):
        path.write_text(json.dumps({"conversations": form}))
        (row,) = read_file(path, Columns(messages="conversations"))
        assert row.turns == (("user", "a"), ("assistant", "b"))


def test_other_names_of_columns(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text('{"Q": "a", "A": "b"}')
    (row,) = read_file(path, Columns(context="Q", target="A"))
    assert row.turns == (("user", "a"), ("assistant", "b"))
    with pytest.raises(DataError) as caught:
        read_file(path, Columns())
    assert str(caught.value) == (
        f"{path}: no question and answer are recognized among its columns Q, A; say which they are: "
        "--columns context=COLUMN,target=COLUMN, or messages=COLUMN for conversations."
    )


def test_files_that_cannot_be_read_as_a_whole(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("none", "pipe"):
        with pytest.raises(RequestError, match="there is no such file or folder"):
            read_dataset(tmp_path / name, Columns())
    (tmp_path / "pipe").unlink()
    with pytest.raises(RequestError, match=r"is no saved DatasetDict and holds no train file \(train.jsonl, "):
        read_dataset(tmp_path, Columns())
    empty = tmp_path / "a.jsonl"
    empty.write_text("\n")
    with pytest.raises(DataError, match="holds no rows"):
        read_file(empty, Columns())
    broken = tmp_path / "a.json"
    broken.write_text('[{"context": "a",\n "target" "b"}]')
    with pytest.raises(DataError, match=r"is not JSON .line 2, column 11: Expecting ':' delimiter"):
        read_file(broken, Columns())
    broken.write_bytes(b'["a",\n"\xff"]')
    with pytest.raises(DataError, match="bad UTF-8 in line 2"):
        read_file(broken, Columns())
    parquet = tmp_path / "a.parquet"
    parquet.write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        read_file(parquet, Columns())


def row(line, context, target="t", file="f"):
    return Row(file, line, (("user", context), ("assistant", target)), True)


def test_the_split_keeps_one_context_on_one_side():
    rows = [row(line, f"c{line % 20}", f"t{line}") for line in range(100)]
    store = RowStore(rows)
    train, valid = split_rows(store, 0.2, seed=1)
    assert len(train) + len(valid) == 100
    assert 15 <= len(valid) <= 25
    contexts = [{row.turns[0][1] for row in part} for part in (train, valid)]
    assert not contexts[0] & contexts[1]
    assert [list(part) for part in split_rows(store, 0.2, seed=1)] == [list(train), list(valid)]
    assert list(split_rows(store, 0.2, seed=2)[1]) != list(valid)
    train, valid = split_rows(RowStore(rows[:2]), 0.001, seed=1)
    assert len(train) == len(valid) == 1


def test_duplicates_between_train_and_valid():
    train = [row(1, "a", "b", "train.jsonl"), row(2, "c", "d", "train.jsonl")]
    valid = [row(1, "a ", " b", "valid.jsonl"), row(2, "c", "other", "valid.jsonl"), row(3, "e", "f", "valid.jsonl")]
    kept, bad, shared = drop_duplicates(RowStore(train), RowStore(valid))
    assert [item.line for item in kept] == [2, 3]
    assert [str(item) for item in bad] == ["valid.jsonl, line 1: duplicate of line 1 of train.jsonl, in train"]
    assert shared == 1
