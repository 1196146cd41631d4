r"""PEFT's rule for the keys of `rank_pattern` and `alpha_pattern`: which key applies to which module.

PEFT takes the first key for which `re.match(rf"(.*\.)?({key})$", module)` holds (peft.utils.other.get_pattern_key).
A key may come from a file that somebody else wrote, and Python's `re` can take hours over a hostile one, so that keys
are run by RE2, whose time is linear in the length of the name. What RE2 lacks (look-around, back
references) is refused.
"""

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import re2

from glmspectra.errors import CheckpointError, GlmspectraError

_LITERAL = re.compile(r"\^?(?:[A-Za-z0-9_]|\\[^A-Za-z0-9])+")
MAX_KEY_LENGTH = 10_000  # characters


class ModulePatterns:
    """The keys of one pattern table, in the order of the file.

    Args:
        keys: Regular expressions as PEFT writes and reads them.
        origin: What the keys are of, for messages.
        error: Class of the error raised for a key that cannot be run.

    Raises:
        GlmspectraError: Of class `error`; a key is no regular expression that RE2 knows.
    """

    def __init__(
        self, keys: Iterable[str], origin: str = "rank_pattern", error: type[GlmspectraError] = CheckpointError
    ):
        self.keys = list(keys)
        self._whole: dict[str, int] = {}  # keys that are one full name, by that name
        self._endings: dict[str, int] = {}  # keys that are plain text, which a name ends in
        self._expressions: list[tuple[int, Any]] = []
        for position, key in enumerate(self.keys):
            if _LITERAL.fullmatch(key):
                table = self._whole if key.startswith("^") else self._endings
                table.setdefault(re.sub(r"\\(.)", r"\1", key.removeprefix("^")), position)
            else:
                self._expressions.append((position, _compiled(key, origin, error)))

    def first(self, module: str) -> str | None:
        """The key that PEFT applies to the module of this full name, or None."""
        found = [table[name] for table, name in self._candidates(module) if name in table]
        best = min(found, default=len(self.keys))
        for position, expression in self._expressions:
            if position > best:
                break
            if expression.match(module):
                best = position
        return self.keys[best] if best < len(self.keys) else None

    def _candidates(self, module: str) -> list[tuple[dict[str, int], str]]:
        parts = module.split(".")
        endings = [(self._endings, ".".join(parts[start:])) for start in range(len(parts))] if self._endings else []
        return [(self._whole, module), *endings]


def matched_by(
    key: str, modules: Iterable[str], origin: str = "rank_pattern", error: type[GlmspectraError] = CheckpointError
) -> list[str]:
    """The modules that PEFT would apply one key to, in their order. Raises `error` as `ModulePatterns` does."""
    patterns = ModulePatterns([key], origin, error)
    return [module for module in modules if patterns.first(module) is not None]


def fully_matched(
    expression: str, modules: Iterable[str], origin: str, error: type[GlmspectraError] = CheckpointError
) -> list[str]:
    """The modules whose whole name an expression matches: PEFT's rule for `target_modules` that is one string.

    Raises:
        GlmspectraError: Of class `error`; it is no regular expression that RE2 knows.
    """
    compiled = _compiled_as("({})$", expression, origin, error)  # type: ignore[arg-type]  # classes hash
    return [module for module in modules if compiled.match(module)]


def module_pattern(module: str) -> str:
    """A key that PEFT finds in this module's name and in no other's."""
    return "^" + re.escape(module)


def _compiled(key: str, origin: str, error: type[GlmspectraError]) -> Any:
    return _compiled_as(r"(.*\.)?({})$", key, f"{origin} key", error)  # type: ignore[arg-type]  # classes hash


@lru_cache(maxsize=65536)
def _compiled_as(template: str, key: str, origin: str, error: type[GlmspectraError]) -> Any:
    options = re2.Options()
    options.log_errors = False
    try:
        if len(key) > MAX_KEY_LENGTH:
            raise re2.error(f"it has {len(key):,} characters")
        return re2.compile(template.replace("{}", key), options)
    except re2.error as fault:
        reason = fault.args[0].decode() if isinstance(fault.args[0], bytes) else fault.args[0]
        reason = reason.partition(": " + template.partition("{}")[0])[0]
        raise error(
            f"{origin} {key[:80]} is no regular expression that is run here ({reason}); "
            "look-around and back references are left out on purpose."
        ) from None
