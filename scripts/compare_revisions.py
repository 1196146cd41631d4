"""Count what a redesign was to change, in two revisions: sizes, long functions, own ways of writing files, types.

    python scripts/compare_revisions.py BEFORE [AFTER] [--mypy]

Prints a Markdown table of both, and below it the functions and files of AFTER (HEAD) that are over the limits. Each
revision is unpacked by `git archive`; nothing of it is imported.
"""

import argparse
import ast
import io
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LONG_FUNCTION, LONG_FILE = 60, 370
WRITERS = ("write_text", "write_bytes")  # of pathlib
SAVERS = ("save_file", "savez", "to_parquet", "write_table", "savefig")  # of libraries, given a path
FLOOR = "files.py"  # where writing whole or not at all is made
WHOLE = re.compile(
    r"write_|written_whole|atomic|replace_folder|new_folder"
)  # what writes so, there and in its forebears


@dataclass
class Counts:
    """What is counted in one revision."""

    files: int = 0
    lines: int = 0
    functions: int = 0
    long_functions: list[tuple[int, str]] = field(default_factory=list)
    long_files: list[tuple[int, str]] = field(default_factory=list)
    renames: list[str] = field(default_factory=list)  # modules that move a finished file into place by themselves
    whole: list[str] = field(default_factory=list)  # modules that write by the one function for it
    in_place: list[str] = field(default_factory=list)  # modules that write where a reader may look
    any_annotations: int = 0
    tuning_entries: int = 0
    mypy: int | None = None


def unpack(revision: str, target: Path) -> Path:
    """The tree of a revision under `target`."""
    content = subprocess.run(["git", "archive", revision], cwd=ROOT, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        archive.extractall(target, filter="data")
    return target


def calls(tree: ast.AST) -> Iterator[tuple[ast.Call, str]]:
    """Every call with the last name of what is called."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = node.func
            yield node, called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")


def writes_in_place(tree: ast.AST) -> bool:
    """Whether a module opens a path for writing, or hands one to a library that does."""
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").endswith(("files", "atomic"))
        for alias in node.names
    }
    for call, name in calls(tree):
        method = isinstance(call.func, ast.Attribute)
        modes = [a.value for a in [*call.args, *(k.value for k in call.keywords)] if isinstance(a, ast.Constant)]
        if name == "open" and any(isinstance(mode, str) and re.fullmatch(r"[wax]b?\+?", mode) for mode in modes):
            return True
        if name in WRITERS and method and name not in imported:
            return True
        if name in SAVERS and call.args and not (isinstance(call.args[0], ast.Name) and call.args[0].id == "file"):
            return True
    return False


def writes_whole(tree: ast.AST) -> bool:
    """Whether a module takes a writer from the module that makes files appear whole or not at all."""
    return any(
        isinstance(node, ast.ImportFrom)
        and (node.module or "").endswith((".files", ".json_files", ".atomic"))
        and "tuning.settings" not in (node.module or "")
        and any(WHOLE.match(alias.name) for alias in node.names)
        for node in ast.walk(tree)
    )


def moves_into_place(tree: ast.AST) -> bool:
    """Whether a module calls os.replace, os.rename, or rename or replace of a path."""
    for call, name in calls(tree):
        of_os = isinstance(call.func, ast.Attribute) and getattr(call.func.value, "id", "") == "os"
        if name in ("replace", "rename") and (of_os or (name == "rename" and len(call.args) == 1)):
            return True
        if name == "replace" and len(call.args) == 1 and not call.keywords and isinstance(call.func, ast.Attribute):
            return True  # str.replace takes two
    return False


def count(root: Path) -> Counts:
    """The counts of the package under `root`."""
    found = Counts()
    package = root / "glmspectra"
    for path in sorted(package.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        name, tree = str(path.relative_to(package)), ast.parse(text)
        length = len(text.splitlines())
        found.files, found.lines = found.files + 1, found.lines + length
        if length > LONG_FILE:
            found.long_files.append((length, name))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                found.functions += 1
                size = (node.end_lineno or node.lineno) - node.lineno + 1
                if size > LONG_FUNCTION:
                    found.long_functions.append((size, f"{name}:{node.name}"))
            annotations = [getattr(node, "annotation", None), getattr(node, "returns", None)]
            found.any_annotations += sum(getattr(a, "id", "") == "Any" for a in annotations)
        if name != FLOOR:
            found.whole += [name] if writes_whole(tree) else []
            found.renames += [name] if moves_into_place(tree) else []
            found.in_place += [name] if writes_in_place(tree) else []
    tuning = package / "tuning"
    found.tuning_entries = sum(not path.name.startswith("_") for path in tuning.iterdir())
    return found


def strict_errors(root: Path) -> int:
    """Errors of `mypy --strict` over the package, by the configuration of that revision."""
    line = [sys.executable, "-m", "mypy", "--strict", "glmspectra"]
    said = subprocess.run(line, cwd=root, capture_output=True, text=True).stdout
    summary = re.search(r"Found (\d+) error", said)
    if summary is None and "Success" not in said:
        raise RuntimeError(said[-2000:])
    return int(summary[1]) if summary else 0


def table(before: Counts, after: Counts) -> str:
    """Both as a Markdown table."""
    rows = [
        ("files of the package", before.files, after.files),
        ("lines in all", before.lines, after.lines),
        ("functions", before.functions, after.functions),
        (f"functions over {LONG_FUNCTION} lines", len(before.long_functions), len(after.long_functions)),
        (f"files over {LONG_FILE} lines", len(before.long_files), len(after.long_files)),
        ("entries of tuning/", before.tuning_entries, after.tuning_entries),
        ("modules that write whole or not at all by the one function for it", len(before.whole), len(after.whole)),
        ("modules that move files into place by themselves", len(before.renames), len(after.renames)),
        ("modules that open a path for writing themselves", len(before.in_place), len(after.in_place)),
        ("annotations that are a bare Any", before.any_annotations, after.any_annotations),
    ]
    if before.mypy is not None:
        rows.append(("errors of mypy --strict", before.mypy, after.mypy))
    lines = [f"| {name} | {one:,} | {other:,} |" for name, one, other in rows]
    return "\n".join(["| | before | after |", "|---|---:|---:|", *lines])


def main() -> None:
    """Count both and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("before")
    parser.add_argument("after", nargs="?", default="HEAD")
    parser.add_argument("--mypy", action="store_true", help="Count errors of mypy --strict too: minutes.")
    asked = parser.parse_args()
    counts = []
    for revision in (asked.before, asked.after):
        with tempfile.TemporaryDirectory() as work:
            root = unpack(revision, Path(work))
            found = count(root)
            found.mypy = strict_errors(root) if asked.mypy else None
            counts.append(found)
    print(table(*counts))
    for revision, found in zip((asked.before, asked.after), counts, strict=True):
        print(f"\n{revision}")
        for size, name in sorted([*found.long_functions, *found.long_files], reverse=True):
            print(f"  {size:4} {name}")
        print("  move files into place:", ", ".join(found.renames))
        print("  open a path for writing:", ", ".join(found.in_place))


if __name__ == "__main__":
    main()
