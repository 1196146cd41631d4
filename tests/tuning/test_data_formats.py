"""Rows as people have them: the forms of data sets, encodings, compression, several data sets, what is not learnt."""

import bz2
import gzip
import json
import lzma
import re

import pytest

from glmspectra.errors import ConfigError, DataError, RequestError
from glmspectra.tuning.data import IGNORED, Encoder, prepare_data, read_rows
from glmspectra.tuning.data.read import Source, find_sources, read_file
from glmspectra.tuning.data.recognize import parse_question
from glmspectra.tuning.data.row_store import RowStore
from glmspectra.tuning.data.rows import BadRow, Columns, Row
from glmspectra.tuning.data.text_file import LONGEST_LINE
from glmspectra.tuning.model.families import family_of
from glmspectra.tuning.settings.load import FinetuneArgs, LoraArgs, Settings
from glmspectra.tuning.settings.train_args import TrainArgs
from tests.tuning.data_tokenizers import TEMPLATE, character_tokenizer

LLAMA = family_of({"model_type": "llama"})
TOOLS_TEMPLATE = "{% if tools %}{{ tools | tojson }}{% endif %}" + TEMPLATE
Q, A = ("user", "q"), ("assistant", "a")


def openai(*turns):
    return [{"role": role, "content": text} for role, text in turns]


SHARE = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
PARTS = [{"role": "user", "content": [{"type": "text", "text": "q"}]}, {"role": "assistant", "content": "a"}]


def write(path, rows, encoding="utf-8"):
    path.write_bytes("\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode(encoding))
    return path


def read(path, columns=None):
    source = Source([path])
    rows = list(source.rows(columns or Columns()))
    return rows, source.facts[0].lines()


@pytest.mark.parametrize(
    ("row", "turns", "form"),
    [
        ({"context": "q", "target": "a"}, (Q, A), "context and target"),
        ({"instruction": "q", "output": "a"}, (Q, A), "instruction and output"),
        ({"instruction": "q", "input": "", "output": "a"}, (Q, A), "instruction, input and output"),
        ({"instruction": "q", "input": "i", "output": "a"}, (("user", "q\ni"), A), "instruction, input and output"),
        ({"instruction": "", "input": "q", "output": "a"}, (Q, A), "instruction, input and output"),
        (
            {"instruction": "q", "output": "a", "system": "s", "history": [["b", "c"]]},
            (("system", "s"), ("user", "b"), ("assistant", "c"), Q, A),
            "instruction, output, system and history",
        ),
        ({"instruction": "q", "context": "c", "response": "a"}, (("user", "q\nc"), A),
         "instruction, context and response"),
        (
            {"prompt": "q", "response": "a", "history": [["b", "c"], ["d", "e"]]},
            (("user", "b"), ("assistant", "c"), ("user", "d"), ("assistant", "e"), Q, A),
            "prompt, response and history",
        ),
        ({"prompt": "q", "response": "a", "history": []}, (Q, A), "prompt, response and history"),
        (
            {"prompt": "q", "response": "a", "history": openai(("user", "b"), ("assistant", "c"))},
            (("user", "b"), ("assistant", "c"), Q, A),
            "prompt, response and history",
        ),
        ({"question": "q", "answer": "a"}, (Q, A), "question and answer"),
        ({"问题": "q", "答案": "a"}, (Q, A), "问题 and 答案"),
        ({"Question": "q", "Answer": "a"}, (Q, A), "Question and Answer"),
        ({"question": "q", "context": "c", "answer": "a"}, (("user", "q\nc"), A), "question, context and answer"),
        ({"content": "q", "summary": "a"}, (Q, A), "content and summary"),
        ({"conversations": SHARE}, (Q, A), "conversations"),
        (
            {"conversations": SHARE, "system": "s", "tools": "[]"},
            (("system", "s"), Q, A),
            "conversations, system and tools",
        ),
        ({"messages": PARTS}, (Q, A), "messages"),
        ({"conversation": [{"system": "s", "input": "q", "output": "a"}]}, (("system", "s"), Q, A), "conversation"),
        ({"conversation": [{"human": "q", "assistant": "a"}]}, (Q, A), "conversation"),
        ({"context": None, "target": None, "messages": openai(Q, A)}, (Q, A), "messages"),
    ],
)  # fmt: skip
def test_forms_are_read_as_they_are(tmp_path, row, turns, form):
    (found,), lines = read(write(tmp_path / "rows.jsonl", [row]))
    assert isinstance(found, Row), found
    assert found.turns == turns
    assert lines == [f"rows.jsonl: 1 row of {form}"]
    (tmp_path / "rows.json").write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8")
    assert [item.turns for item in read_file(tmp_path / "rows.json", Columns())] == [turns]  # one object is one row


def test_several_forms_in_one_file_are_each_counted(tmp_path):
    _, lines = read(write(tmp_path / "rows.jsonl", [{"question": "q", "answer": "a"}, {"messages": openai(Q, A)}]))
    assert lines == ["rows.jsonl: 2 rows: 1 row of question and answer, 1 row of messages"]


def test_columns_that_are_not_read_are_named_once(tmp_path):
    rows = [{"question": "q", "answer": "a", "id": 1, "source": "web"}, {"question": "r", "answer": "b", "id": 2}]
    _, lines = read(write(tmp_path / "rows.jsonl", rows))
    assert lines[1:] == ["rows.jsonl: columns that are not read: id (2 rows), source (1 row)"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "q", "response": "a", "history": [["b"]]}, "round 1 of history is no pair of question and answer"),
        ({"prompt": "q", "response": "a", "history": "b"}, "history is no list of rounds"),
        ({"prompt": "q", "response": "a", "history": [["b", None]]}, "round 1 of history holds what is no text"),
        ({"conversations": SHARE, "tools": "clock"}, "tools is no list of tools"),
        ({"conversations": [{"role": "system", "content": "s"}, *SHARE], "system": "t"},
         "a system column and a system turn; keep one"),
        ({"context": "q"}, "no target"),
        ({"target": "a"}, "no context"),
    ],
)  # fmt: skip
def test_rows_that_are_half_right_are_named(tmp_path, row, reason):
    good = {"context": "q", "target": "a"}
    (bad, _), _ = read(write(tmp_path / "rows.jsonl", [row, good]))
    assert bad.reason == reason


def test_what_openai_says_is_not_learnt_is_not_learnt(tmp_path):
    talk = [Q, A, ("user", "r"), ("assistant", "b")]
    for key, off, on in (("weight", 0, 1), ("loss", False, True), ("train", False, True)):
        turns = openai(*talk)
        turns[1][key], turns[3][key] = off, on
        (row,), lines = read(write(tmp_path / "rows.jsonl", [{"messages": turns}]))
        assert (row.turns, row.silent) == (tuple(talk), (1,))
        assert lines[1] == "rows.jsonl: 1 answer read and not learnt, as weight, loss or train says"
        tokenizer = character_tokenizer(TEMPLATE)
        example = Encoder(tokenizer, "chat", 100, "error").encode(row)
        assert tokenizer.decode([label for label in example.labels if label != IGNORED]) == "b<|end|>"
    for value, reason in ((0.5, "learnt .1, true. or not"), ("0", "or not"), (0, "no answer is to be learnt")):
        turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": value}]
        (row,), _ = read(write(tmp_path / "rows.jsonl", [{"messages": turns}]))
        assert isinstance(row, BadRow)
        assert re.search(reason, row.reason)


@pytest.mark.parametrize(
    ("turn", "reason"),
    [
        ({"role": "assistant", "content": "a", "tool_calls": [{}]}, "turn 2 has tool_calls, which is not supported"),
        (
            {"role": "assistant", "content": "a", "reasoning_content": "r"},
            "turn 2 has reasoning_content, which is not supported",
        ),
        ({"role": "assistant", "content": [{"type": "image_url"}]}, "turn 2 has a part that is no text but image_url"),
        ({"role": "assistant", "content": None}, "turn 2 has no text"),
    ],
)  # fmt: skip
def test_turns_that_are_more_than_text_are_refused_by_name(tmp_path, turn, reason):
    (row,), _ = read(write(tmp_path / "rows.jsonl", [{"messages": [{"role": "user", "content": "q"}, turn]}]))
    assert row.reason == reason


def test_tools_and_system_texts_stand_in_the_template_or_are_refused():
    talk = (("system", "s"), Q, ("assistant", "call"), ("tool", "7"), A)
    row = Row("f", 1, talk, False, tools='[{"name": "clock"}]')
    with_tools = character_tokenizer(TOOLS_TEMPLATE)
    shown = with_tools.decode(Encoder(with_tools, "chat", 200, "error").encode(row).input_ids)
    assert "clock" in shown.replace("<unk>", "")
    assert "7<|end|>" in shown
    without = character_tokenizer(TEMPLATE)
    assert (
        Encoder(without, "chat", 200, "error").encode(row)
        == "the row has tools, and the chat template has no place for them"
    )
    no_system = TEMPLATE.replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}")
    tokenizer = character_tokenizer(no_system)
    example = Encoder(tokenizer, "chat", 200, "error").encode(Row("f", 1, (("system", "be good"), Q, A), True))
    assert tokenizer.decode(example.input_ids) == "<|user|>be good\n\nq<|end|>\n<|assistant|>a<|end|>"
    plain = Encoder(tokenizer, "plain", 200, "error").encode(Row("f", 1, (("system", "be good"), Q, A), True))
    assert tokenizer.decode(plain.input_ids) == "be good\nq\na</s>"


@pytest.mark.parametrize(
    ("context", "between"),
    [("1+1 is", "\n"), ("问题?", "\n"), ("a: ", ""), ("a:", ""), ("答：", ""), ("a\n", ""), ("", "")],
)  # fmt: skip
def test_question_and_answer_never_touch_in_the_plain_template(context, between):
    tokenizer = character_tokenizer()
    row = Row("f", 1, (("user", context), ("assistant", "22")), True)
    ids = Encoder(tokenizer, "plain", 100, "error").encode(row).input_ids
    expected = [*tokenizer.encode(context), *tokenizer.encode(between), *tokenizer.encode("22"), tokenizer.eos_token_id]
    assert ids == expected


ROWS = [{"context": f"头晕怎么办{n}", "target": f"多休息{n}"} for n in range(8)]
TURNS = [(("user", row["context"]), ("assistant", row["target"])) for row in ROWS]
TEXT = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)


@pytest.mark.parametrize(
    ("encoding", "said"),
    [
        ("utf-8", None), ("utf-8-sig", None), ("utf-16", "UTF-16"), ("utf-16-le", "UTF-16-LE"),
        ("utf-16-be", "UTF-16-BE"), ("utf-32", "UTF-32"), ("gbk", "GB18030 (GBK)"), ("gb18030", "GB18030 (GBK)"),
    ],
)  # fmt: skip
def test_encodings_are_found_and_said(tmp_path, encoding, said):
    table = "context,target\r\n" + "".join(f"{row['context']},{row['target']}\r\n" for row in ROWS)
    for name, text in (
        ("a.jsonl", TEXT.replace("\n", "\r\n")),
        ("a.json", json.dumps(ROWS, ensure_ascii=False)),
        ("a.csv", table),
    ):
        (tmp_path / name).write_bytes(text.encode(encoding))
        rows, lines = read(tmp_path / name)
        assert [row.turns for row in rows] == TURNS, name
        assert lines == [f"{name}: 8 rows of context and target" + (f"; read as {said}" if said else "")]


def test_a_few_broken_lines_do_not_make_a_file_gbk_nor_western_text_chinese(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(TEXT.encode() + b'\n{"context": "a", "target": "' + "休息".encode("gbk") + b'"}')
    rows, _ = read(path)
    assert [row.turns for row in rows[:8]] == TURNS
    assert rows[8].reason == "bad UTF-8 at byte 29 of the line"
    path.write_bytes('{"context": "café crème", "target": "à la carte"}'.encode("cp1252"))
    (row,), _ = read(path)
    assert row.reason.startswith("bad UTF-8 at byte 17")
    path.write_bytes(bytes(range(256)) * 300)
    with pytest.raises(DataError, match="holds zero bytes and is no text file"):
        read(path)
    path.write_bytes(b"PK\x03\x04 and so on")
    with pytest.raises(DataError, match="is a zip archive or an Excel sheet"):
        read(path)


def test_line_separators_inside_texts_are_text(tmp_path):
    rows = [{"context": "a\u2028b", "target": "c\x85d"}] * 3
    for encoding in ("utf-8", "utf-16"):
        found, _ = read(write(tmp_path / "a.jsonl", rows, encoding))
        assert [row.turns for row in found] == [(("user", "a\u2028b"), ("assistant", "c\x85d"))] * 3


def test_compressed_files_are_known_by_their_bytes(tmp_path):
    import pyarrow

    packed = {
        "gzip": gzip.compress(TEXT.encode()),
        "bzip2": bz2.compress(TEXT.encode()),
        "xz": lzma.compress(TEXT.encode()),
    }
    stream = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(stream, "zstd") as out:
        out.write(TEXT.encode())
    packed["zstandard"] = stream.getvalue().to_pybytes()
    for name, suffix in (("gzip", ".gz"), ("bzip2", ".bz2"), ("xz", ".xz"), ("zstandard", ".zst")):
        path = tmp_path / f"train.jsonl{suffix}"
        path.write_bytes(packed[name])
        rows, lines = read(path)
        assert [row.turns for row in rows] == TURNS
        assert lines == [f"train.jsonl{suffix}: 8 rows of context and target; unpacked by {name}"]
        assert find_sources(tmp_path)[0]["train"].files == [path]
        path.write_bytes(packed[name][:-9])
        with pytest.raises(DataError, match="cannot be read"):
            read(path)
        path.unlink()


@pytest.mark.parametrize(
    ("delimiter", "said"), [(",", ""), (";", "; fields separated by ;"), ("\t", "; fields separated by tab")]
)
def test_the_delimiter_is_found(tmp_path, delimiter, said):
    path = tmp_path / "a.csv"
    path.write_text(f'question{delimiter}answer\n"a, b; c"{delimiter}"d\ne"\n')
    (row,), lines = read(path)
    assert row.turns == (("user", "a, b; c"), ("assistant", "d\ne"))
    assert lines == ["a.csv: 1 row of question and answer" + said]


def test_a_broken_line_of_a_csv_does_not_end_it(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('context,target\na,b\n"c"d,e\nf,g\n')
    rows, _ = read(path)
    assert [getattr(row, "reason", None) or row.turns[0][1] for row in rows] == [
        "a",
        "broken CSV: ',' expected after '\"'",
        "f",
    ]
    path.write_text("context,target,target\na,b,c\n")
    with pytest.raises(DataError, match="the column target stands twice in the header"):
        read(path)


def test_lines_that_no_reader_should_believe(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [
        '{"context": "a", "target": "b", "target": "c"}',
        '{"context": "a", "target": ' + "9" * 5000 + "}",
        "[" * 100_000,
        '{"context": "a", "target": NaN}',
        '{"context": "a", "target": "' + "b" * LONGEST_LINE + '"}',
        '{"context": "a", "target": "b"}',
    ]
    path.write_text("\n".join(lines))
    rows, _ = read(path)
    assert [row.reason for row in rows[:5]] == [
        "the key 'target' stands twice in one object",
        "a number has more than 4,300 digits",
        "the line is nested too deeply to be one of the files it is named as",
        "NaN stands where a number must, and is not JSON",
        "has more than 67,108,864 characters",
    ]
    assert isinstance(rows[5], Row)


def test_folders_of_pieces_and_of_two_answers(tmp_path):
    for part in (1, 0):
        write(tmp_path / f"train-0000{part}-of-00002.jsonl", ROWS[part * 4 : part * 4 + 4])
    write(tmp_path / "test.jsonl", ROWS[:1])
    write(tmp_path / "other.jsonl", ROWS[:1])
    sources, notes = find_sources(tmp_path)
    assert [row.turns for row in sources["train"].rows(Columns())] == TURNS
    assert notes == [f"{tmp_path}: files that are not read: other.jsonl"]
    write(tmp_path / "test.csv", ROWS[:1])
    with pytest.raises(RequestError, match=r"test.csv, test.jsonl may each be the valid part; keep one"):
        find_sources(tmp_path)


def settings_of(tmp_path, dataset_path, **keys):
    finetune = {"dataset_path": dataset_path, "cache_dir": str(tmp_path / "cache"), **keys}
    return Settings(finetune=FinetuneArgs(**finetune), lora=LoraArgs(), train=TrainArgs(eval_strategy="no"))


def test_several_data_sets_with_weights_columns_and_templates(tmp_path):
    first = write(tmp_path / "a.jsonl", [{"context": f"q{n}", "target": "a"} for n in range(4)])
    second = write(tmp_path / "b.jsonl", [{"Q": f"r{n}", "A": "b", "Z": ""} for n in range(3)])
    part = {"path": str(second), "weight": 2.0, "columns": {"context": "Q", "target": "A"}, "template": "plain"}
    settings = settings_of(tmp_path, [str(first), {"path": str(first), "weight": 0.5}, part])
    tokenizer = character_tokenizer(TEMPLATE)
    data = prepare_data(settings, tokenizer, LLAMA)
    assert len(data.train) == 4 + 2 + 6
    shown = [tokenizer.decode(ids) for ids in data.train["input_ids"]]
    assert shown[:4] == [f"<|user|>q{n}<|end|>\n<|assistant|>a<|end|>" for n in range(4)]
    assert shown[6:] == [f"r{n}\nb</s>" for n in range(3)] * 2
    lines = data.report.lines()
    assert f"{second}: weight 2 makes 6 of 3 rows." in lines
    assert f"{first}: weight 0.5 makes 2 of 4 rows." in lines
    assert "train: 4 rows say what an earlier row says, and are learnt again" in lines
    with pytest.raises(ConfigError, match="has no chat template"):
        prepare_data(settings_of(tmp_path, [{"path": str(first), "template": "chat"}]), character_tokenizer(), LLAMA)


def test_what_is_kept_for_evaluation_is_kept_from_every_data_set(tmp_path):
    first = write(tmp_path / "a.jsonl", [{"context": f"q{n}", "target": "a"} for n in range(10)])
    settings = settings_of(tmp_path, [str(first), {"path": str(first), "weight": 3.0}], valid_fraction=0.3)
    rows, _ = read_rows(settings)
    kept = {row.turns[0] for row in rows["valid"]}
    assert len(kept) == 3
    assert {row.turns[0] for row in rows["train"]} == {("user", f"q{n}") for n in range(10)} - kept
    assert len(rows["train"]) == 7 + 3 * 7


@pytest.mark.parametrize("in_memory", [1 << 20, 100])  # of which the second goes to the disk
def test_a_store_gives_back_what_was_put_in(tmp_path, monkeypatch, in_memory):
    monkeypatch.setattr("glmspectra.tuning.data.row_store.IN_MEMORY", in_memory)
    rows = [Row("f", n, (("user", f"问{n}"), ("assistant", "a")), True, (1,), "[]", "plain") for n in range(5)]
    store = RowStore(rows, tmp_path)
    assert list(store) == rows
    assert list(store.select([3, 1, 1])) == [rows[3], rows[1], rows[1]]
    assert store.select([3, 1]).select([1])[0] == rows[1]
    assert store[-1] == rows[4]
    with pytest.raises(IndexError):
        store[5]


def test_questions_to_be_answered_are_read_from_the_same_rows():
    from glmspectra.tuning.data.recognize import FileFacts

    facts = FileFacts("f")
    asked = [
        {"prompt": "q", "history": [["b", "c"]]},
        {"prompt": "q", "response": "a", "history": [["b", "c"]]},
        {"messages": openai(("user", "b"), ("assistant", "c"), Q, A)},
    ]
    for row in asked:
        found = parse_question("f", 1, row, Columns(), facts)
        assert found.turns == (("user", "b"), ("assistant", "c"), Q)
    assert parse_question("f", 1, {"context": " "}, Columns(), facts).reason == "no question"


def test_columns_as_the_command_line_names_them():
    assert Columns.parse("context=Q, target=A") == Columns(context="Q", target="A")
    for wrong in ("context", "question=Q", "context=Q,context=R", "context="):
        with pytest.raises(
            RequestError, match=r"^--columns .* is not ROLE=COLUMN with one of the roles context, target,"
        ):
            Columns.parse(wrong)
