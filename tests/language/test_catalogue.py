"""The catalogue: nothing missing in either language, and nothing that no one asks for."""

import re
from collections.abc import Iterable
from pathlib import Path

import pytest
from fluent.syntax import FluentParser, ast, visitor

from glmspectra import language
from glmspectra.errors import RequestError
from glmspectra.language import Words, both, catalogue, choose, current, text
from glmspectra.store.columns import CHANGE, DERIVED, HISTOGRAMS, IDENTITY, SINGULAR_VALUES, SPECTRUM, UNITS, VALUES

PACKAGE = Path(language.__file__).parents[1]
CHINESE = re.compile("[\u4e00-\u9fff]")
# Messages whose Chinese is rightly without a Chinese character.
ALIKE = {
    "terminal-jsonl",
    "evaluation-sample",
    "progress-line",
    "progress-of",
    "chat-who",
    "data-file-row-formats",
    "ui-with-unit",
    "ui-of-matrix",
    "keys-heading",
}


class Variables(visitor.Visitor):
    def __init__(self):
        self.names = set()

    def visit_VariableReference(self, node):
        self.names.add(node.id.name)


def messages(tongue: str) -> dict[str, tuple[str, set[str]]]:
    """File and variables of each message of a language; a message that does not parse fails here."""
    found = {}
    for path in sorted((PACKAGE / "language" / tongue).glob("*.ftl")):
        for entry in FluentParser().parse(path.read_text(encoding="utf-8")).body:
            assert not isinstance(entry, ast.Junk), f"{path}: {entry.content}"
            if isinstance(entry, ast.Message):
                assert entry.id.name not in found, f"{entry.id.name} stands twice"
                seen = Variables()
                seen.visit(entry)
                found[entry.id.name] = path.name, seen.names
    return found


def test_both_languages_hold_the_same_messages_with_the_same_variables():
    english, chinese = messages("en"), messages("zh")
    assert len(english) > 10
    assert english.keys() == chinese.keys()
    assert english == chinese


def test_every_chinese_message_is_chinese():
    for name, (_, variables) in messages("zh").items():
        words = text(name, "zh", **dict.fromkeys(variables, 2))
        assert CHINESE.search(words) or name in ALIKE, f"{name}: {words}"
        assert not CHINESE.search(text(name, "en", **dict.fromkeys(variables, 2))), name


def code() -> str:
    """All that asks for messages: Python, the template and the page's scripts."""
    sources = [*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.jinja"), *PACKAGE.glob("figures/page/*.js")]
    return "".join(path.read_text(encoding="utf-8") for path in sources)


def unasked(names: Iterable[str], results: str) -> set[str]:
    """Those of `names` that no code asks for, in quotes as they are or put together.

    What is put together, `f"page-head-{name}"`, counts where both its beginning and what fills it stand in the code.
    """
    whole = set(re.findall(r"""["'`]([a-z][a-z0-9]*(?:-[a-z0-9]+)+)["'`]""", results))
    beginnings = set(re.findall(r"""["'`]([a-z][a-z0-9-]*-)(?:\$?\{|["'`])""", results))
    inner = {found.replace("_", "-") for found in re.findall(r"""["']([a-z]+_)\{""", results)}
    words = {re.sub("[^a-z0-9]+", "-", word.lower()) for word in re.findall(r"""["'`]([\w:, -]+)["'`]""", results)}
    endings = set(re.findall(r"""["'`}](-[a-z-]+)["'`]""", results))

    def asked(name: str) -> bool:
        rests = {name.removeprefix(beginning) for beginning in beginnings if name.startswith(beginning)}
        rests |= {rest.removeprefix(more) for rest in rests for more in inner}
        rests |= {rest.removesuffix(end) for rest in rests for end in endings}
        return bool({name, *map(name.removesuffix, endings)} & whole or rests & words)

    return {name for name in names if not asked(name)}


def test_every_message_is_asked_for_somewhere():
    results = code()
    assert unasked([*messages("en"), "page-head-nowhere", "terminal-no-such-thing"], results) == {
        "page-head-nowhere",
        "terminal-no-such-thing",
    }


def test_a_message_that_is_not_there_is_an_error():
    with pytest.raises(KeyError, match="no-such-message"):
        text("no-such-message")
    with pytest.raises(KeyError, match="terminal-tables"):
        text("terminal-tables")


def test_plurals_and_words_in_words():
    assert text("terminal-matrices", "en", count=1) == "1 matrix"
    assert text("terminal-matrices", "en", count=1200) == "1,200 matrices"
    assert text("terminal-matrices", "zh", count=1) == "1 个矩阵"
    inner = both("terminal-matrices", count=3)
    assert both("terminal-left-out", matrices=inner).zh.startswith("先前所选的 3 个矩阵")
    assert Words("a", "甲") + Words("b", "乙") == Words("a b", "甲乙")


@pytest.mark.parametrize(("variable", "value", "expected"), [("LANG", "zh_CN.UTF-8", "zh"), ("LC_ALL", "C", "en")])
def test_the_language_is_that_of_the_locale_or_the_chosen_one(monkeypatch, variable, value, expected):
    monkeypatch.setattr(catalogue, "_chosen", "auto")
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, value)
    assert current() == expected
    choose("zh")
    assert current() == "zh"
    with pytest.raises(RequestError, match="--lang fr"):
        choose("fr")


def test_every_column_is_described_in_both_languages():
    groups = (IDENTITY, VALUES, SPECTRUM, CHANGE, SINGULAR_VALUES, HISTOGRAMS, DERIVED)
    columns = [column for group in groups for column in group]
    assert len(columns) > 80
    for column in columns:
        assert column.unit in UNITS, column.name
        assert all(column.label), column.name
        assert column.meaning[0].endswith("."), column.name
        assert CHINESE.search(column.meaning[1] + column.label[1]), column.name
        assert not CHINESE.search(column.label[0] + column.meaning[0]), column.name
    assert all(CHINESE.search(chinese) for name, (_, chinese) in UNITS.items() if name not in ("", "%"))
