"""The table of the design page: which package may import which. Held by reading every import statement."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "glmspectra"

MAY_IMPORT = {
    "checkpoint": set(),
    "spectra": set(),
    "store": set(),
    "sweep": {"checkpoint", "spectra", "store"},
    "ranks": {"store"},
    "chatglm2": {"checkpoint"},
    "tuning": {"chatglm2", "checkpoint", "store"},
    "figures": {"store"},
    "loop": {"checkpoint", "spectra", "store", "sweep", "ranks", "chatglm2", "tuning", "figures"},
    "cli": {"checkpoint", "spectra", "store", "sweep", "ranks", "chatglm2", "tuning", "figures", "loop"},
    "api": {"checkpoint", "spectra", "store", "sweep", "ranks", "chatglm2", "tuning", "figures", "loop"},
}
# The ground floor: what every package may import.
SHARED = {"errors", "files", "json_files", "device", "embedded", "launch", "progress", "language", "peft_rules"} | {
    "__version__"
}


def imported(source: str, module: tuple[str, ...]) -> set[str]:
    """First names under glmspectra that `source`, the text of module (package, file), imports, anywhere in
    it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            found |= {name[1] if len(name) > 1 else "*" for name in names if name[0] == "glmspectra"}
        elif isinstance(node, ast.ImportFrom):
            base = ["glmspectra", *module[: len(module) - node.level]] if node.level else []
            path = [*base, *(node.module or "").split(".")] if node.module else base
            if path[0] != "glmspectra":
                continue
            found |= {path[1]} if len(path) > 1 else {alias.name for alias in node.names}
    return found


def offences(package: str, source: str, module: tuple[str, ...]) -> set[str]:
    return imported(source, module) - MAY_IMPORT[package] - SHARED - {package}


def modules():
    return sorted(path for path in PACKAGE.rglob("*.py") if len(path.relative_to(PACKAGE).parts) > 1)


def test_every_package_stands_in_the_table():
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert packages - SHARED == MAY_IMPORT.keys()
    assert len(modules()) > 40, "the walk sees the modules"


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_go_one_way(package):
    wrong = {}
    for path in (PACKAGE / package).rglob("*.py"):
        found = offences(package, path.read_text(encoding="utf-8"), path.relative_to(PACKAGE).parts)
        if found:
            wrong[str(path.relative_to(PACKAGE))] = sorted(found)
    assert not wrong


@pytest.mark.parametrize(
    "line",
    [
        "import glmspectra.spectra",
        "import glmspectra.spectra.measure as m",
        "from glmspectra.spectra import spectra_of",
        "from glmspectra import spectra",
        "from ..spectra.measure import spectra_of",
        "from .. import spectra",
        "def f():\n    from glmspectra.spectra import spectra_of",
    ],
)
def test_the_walk_sees_an_import_that_is_not_allowed(line):
    assert offences("store", line, ("store", "run.py")) == {"spectra"}
    assert offences("sweep", line, ("sweep", "sweep.py")) == set()


def test_imports_of_ones_own_package_and_of_others_libraries_are_no_offence():
    lines = "import numpy", "from glmspectra.errors import StoreError", "from glmspectra import __version__"
    source = "\n".join([*lines, "from . import schema"])
    assert offences("store", source, ("store", "run.py")) == set()
