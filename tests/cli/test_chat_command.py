"""`glmspectra chat` on the embedded model."""

import io
import itertools
import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import glmspectra.chatglm2  # noqa: F401  (registers the model)
from glmspectra.cli.main import main
from glmspectra.embedded import EMBEDDED_MODEL
from glmspectra.errors import RequestError
from glmspectra.tuning.inference.conversation import NEXT_ROUND, Conversation, talk

GREEDY = ("--temperature", "0", "--max-new-tokens", "24", "--device", "cpu")


@pytest.fixture(scope="module")
def nano():
    return AutoModelForCausalLM.from_pretrained(EMBEDDED_MODEL, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(EMBEDDED_MODEL)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def run(capsys, monkeypatch):
    """Runs the command as the shell would: (exit status, stdout, stderr)."""

    def run(*arguments: str, stdin: str | io.StringIO = "") -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin) if isinstance(stdin, str) else stdin)
        with pytest.raises(SystemExit) as ended:
            main(["chat", *arguments])
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run


def test_one_question_as_json(run, nano, tokenizer):
    status, out, _ = run("头晕怎么办？", "--model", "nano", "--json", *GREEDY)
    assert status == 0
    result = json.loads(out)
    expected, _ = nano.chat(tokenizer, "头晕怎么办？", do_sample=False, max_new_tokens=24)
    assert result["answer"] == expected.split(NEXT_ROUND)[0].strip() != ""
    assert result["template"] == "chat"
    assert 0 < result["new_tokens"] <= 24


def test_an_answer_is_printed_as_it_stands(run, monkeypatch):
    def ask(self, query):
        self.rounds.append((query, "[b]先休息[/b] [Round 2]"))
        return iter(())

    monkeypatch.setattr(Conversation, "ask", ask)
    assert run("头晕怎么办？", "--model", "nano", *GREEDY)[:2] == (0, "[b]先休息[/b] [Round 2]\n")


def test_the_question_on_stdin_with_an_adapter(run, nano, tokenizer, tmp_path):
    adapter = get_peft_model(
        AutoModelForCausalLM.from_pretrained(EMBEDDED_MODEL), LoraConfig(r=2, target_modules=["query_key_value"])
    )
    adapter.save_pretrained(tmp_path)  # B is zero: the answers are the base model's
    arguments = ("--model", "nano", "--template", "chat", "--adapter", str(tmp_path), *GREEDY)
    status, out, _ = run(*arguments, stdin="头晕怎么办？\n")
    assert status == 0
    conversation = Conversation(nano, tokenizer, max_new_tokens=24)
    assert out.strip() == list(conversation.ask("头晕怎么办？"))[-1]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((" ",), "the question is empty"),
        (("问", "--template", "free"), "write auto, plain or chat"),
        (("问", "--temperature", "-1"), "--temperature is 0 or more"),
        (("问", "--adapter", "nowhere"), "nowhere"),
        (("问", "--model", "nowhere"), "nowhere"),
    ],
)
def test_wrong_requests(run, arguments, sentence):
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert sentence in err


def test_json_without_a_question_on_a_terminal(run):
    status, _, err = run("--json", stdin=Terminal())
    assert status == 2
    assert "--json gives one object for one question" in err


def test_a_conversation_keeps_its_rounds(nano, tokenizer):
    conversation = Conversation(nano, tokenizer, max_new_tokens=24)
    first = list(conversation.ask("头晕怎么办？"))
    assert len(first) > 2
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(first))
    second = list(conversation.ask("需要做什么检查？"))[-1]
    history = [("头晕怎么办？", first[-1])]
    expected, _ = nano.chat(tokenizer, "需要做什么检查？", history, do_sample=False, max_new_tokens=24)
    assert second == expected.split(NEXT_ROUND)[0].strip()
    assert conversation.rounds == [*history, ("需要做什么检查？", second)]


def test_plain_asks_with_the_question_alone(nano, tokenizer):
    conversation = Conversation(nano, tokenizer, template="plain", max_new_tokens=12)
    for _ in range(2):  # the same answer twice: no rounds before it
        answer = list(conversation.ask("那天阴天，云很厚。"))[-1]
        ids = tokenizer("那天阴天，云很厚。\n", return_tensors="pt")  # as training separates it from the answer
        output = nano.generate(**ids, do_sample=False, max_new_tokens=12)[0, ids["input_ids"].shape[1] :]
        assert answer == tokenizer.decode(output, skip_special_tokens=True).strip()


def test_what_cannot_be_asked(nano, tokenizer):
    with pytest.raises(RequestError, match="empty"):
        next(Conversation(nano, tokenizer).ask("  "))
    with pytest.raises(RequestError, match="the model has 8 positions"):
        next(Conversation(nano, tokenizer, positions=8).ask("头晕怎么办？"))


def test_a_mark_of_the_next_round_is_never_shown(nano, tokenizer):
    conversation = Conversation(nano, tokenizer)
    for size in range(1, len(NEXT_ROUND) + 1):
        assert conversation._shown("休息。" + NEXT_ROUND[:size]) == "休息。"
    assert conversation._shown("休息。\n\n多喝水") == "休息。\n\n多喝水"
    assert Conversation(nano, tokenizer, template="plain")._shown("休息。\n\n[Round 2]") == "休息。\n\n[Round 2]"


def test_talking(nano, tokenizer):
    conversation = Conversation(nano, tokenizer, max_new_tokens=12, positions=200)
    lines = iter(["头晕怎么办？", "", "/help", "问" * 400, "/clear", "/undo", "需要做什么检查？", "/history"])

    def read() -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    written: list[str] = []
    assert talk(conversation, read, written.append) == 2
    text = "".join(written)
    assert "/clear begins anew" in text
    assert "the model has 200 positions" in text
    assert [query for query, _ in conversation.rounds] == ["需要做什么检查？"]
    assert conversation.rounds[0][1] in text
    assert "there is no round to take back." in text
    assert text.endswith(f"> 需要做什么检查？\n{conversation.rounds[0][1]}\n")
    assert talk(conversation, iter(["/undo", "/exit"]).__next__, written.append) == 0
    assert conversation.rounds == []
    assert talk(conversation, lambda: "/exit", written.append) == 0


def test_an_answer_that_is_stopped_is_not_kept(nano, tokenizer, monkeypatch):
    conversation = Conversation(nano, tokenizer, max_new_tokens=12)
    list(conversation.ask("头晕怎么办？"))
    before = [*conversation.rounds]

    def stopped(self, query):
        yield "多"
        raise KeyboardInterrupt

    monkeypatch.setattr(Conversation, "ask", stopped)
    written: list[str] = []
    assert talk(conversation, iter(["需要做什么检查？", "/exit"]).__next__, written.append) == 0
    assert "".join(written) == "多\n(stopped; the question and this answer are not kept)\n"
    assert conversation.rounds == before


def test_a_system_text_stands_where_the_chat_template_has_it(nano, tokenizer):
    system = "你是一位医生。"
    conversation = Conversation(nano, tokenizer, max_new_tokens=8, system=system)
    list(conversation.ask("头晕怎么办？"))
    messages = [{"role": "system", "content": system}, {"role": "user", "content": "头晕怎么办？"}]
    expected = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    conversation.rounds.clear()
    assert torch.equal(conversation._inputs("头晕怎么办？")["input_ids"], expected["input_ids"])
    assert system in tokenizer.decode(expected["input_ids"][0])
    with pytest.raises(RequestError, match="the plain template has no place for a system text"):
        Conversation(nano, tokenizer, template="plain", system=system)


def test_an_adapter_that_is_a_file_is_refused_before_anything_is_loaded(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("glmspectra.cli.chat._open", lambda *_: pytest.fail("the model was loaded"))
    file = tmp_path / "adapter.safetensors"
    file.write_bytes(b"")
    with pytest.raises(SystemExit) as leaving:
        main(["chat", "hello", "--model", "nano", "--adapter", str(file)])
    assert leaving.value.code == 2
    assert f"--adapter {file}: there is no such folder." in capsys.readouterr().err
