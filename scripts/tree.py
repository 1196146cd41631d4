"""Write the tree of the package into docs/layout.md: one line a file, taken from each module's docstring.

python scripts/tree.py            writes it
python scripts/tree.py --check    exit status 1 where the written one is not what the code says
"""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "layout.md"
BEGIN, END = "<!-- tree: begin -->", "<!-- tree: end -->"


def summary(path: Path) -> str:
    """The first sentence of a module's docstring. Raises ValueError where there is none."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    if not docstring:
        raise ValueError(f"{path.relative_to(ROOT)} has no docstring.")
    return " ".join(docstring.split("\n\n")[0].split())


def lines(folder: Path, depth: int = 0) -> list[str]:
    """The tree below `folder`: files first, then folders, each with its sentence."""
    found = []
    indent = "  " * depth
    for path in sorted(folder.glob("*.py")):
        if path.name not in ("__init__.py", "__main__.py"):
            found.append(f"{indent}{path.name:<{max(30 - len(indent), 1)}} {summary(path)}")
    for child in sorted(path for path in folder.iterdir() if (path / "__init__.py").is_file()):
        found.append(f"{indent}{child.name + '/':<{max(30 - len(indent), 1)}} {summary(child / '__init__.py')}")
        found += lines(child, depth + 1)
    return found


def page(text: str) -> str:
    """`text` with the tree between its two marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    tree = "\n".join(["glmspectra/", *lines(ROOT / "glmspectra", 1)])
    return f"{before}{BEGIN}\n```text\n{tree}\n```\n{END}{after}"


def main() -> int:
    """Write or check; the exit status."""
    text = PAGE.read_text(encoding="utf-8")
    wanted = page(text)
    if "--check" in sys.argv:
        if wanted != text:
            print(f"{PAGE.relative_to(ROOT)} is behind the code: run python scripts/tree.py")
        return int(wanted != text)
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
