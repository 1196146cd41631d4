"""Messages by name, in the language of the reader or in both."""

import locale
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from glmspectra.errors import RequestError

if TYPE_CHECKING:
    from fluent.runtime import FluentBundle

LANGUAGES = ("en", "zh")
AUTO = "auto"
_FOLDER = Path(__file__).parent
_LOCALE_VARIABLES = ("LC_ALL", "LC_MESSAGES", "LANG")

_chosen = AUTO


@dataclass(frozen=True)
class Words:
    """The same words in English and Chinese."""

    en: str
    zh: str

    @classmethod
    def same(cls, words: str) -> "Words":
        """A name or a number, which is written alike in both."""
        return cls(words, words)

    @property
    def shown(self) -> str:
        """Those in the language in use."""
        return self.zh if current() == "zh" else self.en

    def __add__(self, other: "Words") -> "Words":
        """Join the words of each language, without a space where Chinese follows on."""
        return Words(f"{self.en} {other.en}".strip(), f"{self.zh}{other.zh}")


def choose(language: str) -> None:
    """Set the language of this process.

    Args:
        language: 'en', 'zh', or 'auto' for the one of the locale.

    Raises:
        RequestError: The language is none of these.
    """
    global _chosen
    if language not in (*LANGUAGES, AUTO):
        raise RequestError(f"--lang {language}: there are {', '.join(LANGUAGES)} and {AUTO}.")
    _chosen = language


def chosen() -> str:
    """What was asked for: 'en', 'zh' or 'auto'."""
    return _chosen


def current() -> str:
    """The language in use, 'en' or 'zh'; under 'auto' Chinese where the locale is Chinese, else English."""
    if _chosen != AUTO:
        return _chosen
    for variable in _LOCALE_VARIABLES:
        if os.environ.get(variable):
            return "zh" if os.environ[variable].lower().startswith("zh") else "en"
    return "zh" if (locale.getlocale()[0] or "").lower().startswith(("zh", "chinese")) else "en"


def text(message: str, /, language: str | None = None, **values: object) -> str:
    """One message in one language.

    Args:
        message: Its name in the catalogue.
        language: 'en' or 'zh'; None: `current()`.
        **values: What its variables stand for; whole numbers choose plurals and get separators of thousands, anything
            else should come as text. Words are taken in the message's language.

    Raises:
        KeyError: The catalogue has no such message, or a variable has no value.
    """
    language = language or current()
    bundle = _bundle(language)
    if not bundle.has_message(message):
        entry = _entries(language).get(message)
        if entry is None:
            raise KeyError(f"{message} is not in the catalogue ({language})")
        _add(bundle, entry)
    pattern = bundle.get_message(message).value
    if pattern is None:
        raise KeyError(f"{message} has no text ({language})")
    given = {name: getattr(value, language) if isinstance(value, Words) else value for name, value in values.items()}
    formatted, errors = bundle.format_pattern(pattern, given)
    if errors:
        raise KeyError(f"{message} ({language}): {errors[0]}")
    return str(formatted)


def listed(words: Iterable[str], language: str | None = None) -> str:
    """Words as a list within a sentence: with commas, in Chinese with enumeration commas."""
    return ("、" if (language or current()) == "zh" else ", ").join(words)


def clauses(words: Iterable[str], language: str | None = None) -> str:
    """Parts of a sentence one after the other, with commas."""
    return ("，" if (language or current()) == "zh" else ", ").join(words)


def both(message: str, /, **values: object) -> Words:
    """One message in both languages; as `text`."""
    return Words(text(message, "en", **values), text(message, "zh", **values))


def known(message: str, /) -> bool:
    """True where the catalogue has a message of this name: a test holds that it then has it in both languages."""
    return message in _entries("en")


def plain_messages(file: str) -> dict[str, dict[str, str]]:
    """All messages of one file as they stand, for a reader that fills `{ $variable }` by itself (the page's script).

    Returns:
        language -> name -> pattern on one line.
    """
    return {language: _plain(language, file) for language in LANGUAGES}


def _plain(language: str, file: str) -> dict[str, str]:
    lines = (_FOLDER / language / f"{file}.ftl").read_text(encoding="utf-8").splitlines()
    found = (re.match(r"([a-z0-9-]+) = (.*)", line) for line in lines)
    return {match[1]: match[2] for match in found if match}


@cache
def _entries(language: str) -> dict[str, str]:
    """Name -> source of every message: parsed one by one when asked for, since a command says few of them."""
    found: dict[str, str] = {}
    for path in sorted((_FOLDER / language).glob("*.ftl")):
        for entry in re.split(r"(?m)^(?=[a-z][a-z0-9-]* =)", path.read_text(encoding="utf-8"))[1:]:
            found[entry.split(" ", 1)[0]] = entry
    return found


@cache
def _bundle(language: str) -> "FluentBundle":
    from fluent.runtime import FluentBundle

    return FluentBundle([language], use_isolating=False)


def _add(bundle: "FluentBundle", entry: str) -> None:
    from fluent.runtime import FluentResource

    bundle.add_resource(FluentResource(entry))
