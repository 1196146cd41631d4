"""Runs the examples of the commands' help one after another in one folder, and compares what they print.

python -m tests.docs.help_examples    prints every call with what it prints now, to be copied where an example is behind
"""

import contextlib
import io
import os
import re
import shlex
import tempfile

from glmspectra.cli.example import SKIPPED, example_of
from glmspectra.cli.main import main

# Each may use what those before it left in the folder.
ORDER = (
    *("init", "doctor", "inspect", "convert", "values", "svd", "train", "delta", "suggest-rank"),
    *("evaluate", "merge", "squeeze", "chat", "infer", "report"),
)
LONG = ("loop", "demo")
CALL = "$ glmspectra "

TIME = re.compile(r"\b\d+(\.\d+)? (s\b|秒)")
# What differs from one machine, folder or moment to another.
FORGIVEN = [
    (TIME, "TIME"),
    (re.compile(r"\S*/glmspectra/nano\b"), "NANO"),
    (re.compile(r"[\d.]+ [KMGT]iB free( in \S+)?"), "FREE"),
    (re.compile(r"-[0-9a-f]{16}\b"), "-FINGERPRINT"),
    (re.compile(r"(?<![\w.])\d+\.\d+\.\d+[\w.+]*"), "VERSION"),
]
NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?(?!\w)")


def call_of(command: str) -> list[str]:
    """The arguments of `glmspectra` in a command's example."""
    first = example_of(command).splitlines()[0]
    assert first.startswith(CALL), f"{command}: {first}"
    return shlex.split(first.removeprefix(CALL))


def shown_by(command: str) -> str:
    """What the example of a command says it prints."""
    return example_of(command).partition("\n")[2]


def printed_by(arguments: list[str], language: str = "en") -> str:
    """What a call prints on stdout; it must end well."""
    stream = io.StringIO()
    status = 0
    with contextlib.redirect_stdout(stream):
        try:
            main([*arguments, "--lang", language])
        except SystemExit as leaving:
            status = int(leaving.code or 0)
    assert status == 0, f"{arguments} ended with {status}"
    return stream.getvalue()


def alike(shown: list[str], printed: list[str]) -> bool:
    """Whether the shown lines are those printed, but for times, paths, last digits, and lines under `...`."""
    if not shown:
        return not printed
    if shown[0] == SKIPPED:
        return any(alike(shown[1:], printed[start:]) for start in range(len(printed) + 1))
    return bool(printed) and alike_lines(shown[0], printed[0]) and alike(shown[1:], printed[1:])


def alike_lines(one: str, other: str) -> bool:
    """Whether two lines have the same words, and numbers within 5 % (counts: within 1).

    Processors add in different orders, so that ten steps of training end at slightly different numbers.
    """
    if words_of(one) != words_of(other):
        return False
    for pattern, name in FORGIVEN:
        one, other = pattern.sub(name, one), pattern.sub(name, other)
    numbers = [[float(number.replace(",", "")) for number in NUMBER.findall(line)] for line in (one, other)]
    return all(abs(a - b) <= max(1.0 if a == int(a) else 0.0, 0.05 * abs(a)) for a, b in zip(*numbers, strict=True))


def words_of(line: str) -> list[str]:
    """The words of a line, every number as N."""
    for pattern, name in FORGIVEN:
        line = pattern.sub(name, line)
    return NUMBER.sub("N", line).split()


def lines_of(text: str) -> list[str]:
    """The lines of a text without the spaces at their ends."""
    return [line.rstrip() for line in text.splitlines()]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["COLUMNS"] = "80"
        for name in (*ORDER, *LONG):
            print(f"== {name}\n{example_of(name).splitlines()[0]}", flush=True)
            print("\n".join(lines_of(printed_by(call_of(name)))), flush=True)
