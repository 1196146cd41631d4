"""What the documents say can be done, done; and the two languages held beside each other."""

import re
import shutil
from pathlib import Path

import pytest

from tests.docs.documents import BLOCK, ROOT, arguments_of, commands, prepare, run

HOWTOS = sorted(path for path in (ROOT / "docs" / "howto").glob("*.md") if not path.name.endswith(".zh.md"))
PAIRS = [(ROOT / "README.md", ROOT / "README.zh-CN.md")]
PAIRS += [(path, path.with_name(path.name.replace(".md", ".zh.md"))) for path in [*HOWTOS, ROOT / "docs/python.md"]]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("*/README.md")])
NUMBER = re.compile(r"(?<![\w.])\d+(?:[.,]\d+)*")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("documents")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        prepare(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("document", [ROOT / "README.md", *HOWTOS], ids=lambda path: path.stem)
def test_every_command_of_a_document_runs(document, workplace, tmp_path, monkeypatch):
    folder = tmp_path / "here"
    shutil.copytree(workplace, folder, symlinks=True)
    monkeypatch.chdir(folder)
    lines = [arguments_of(command) for command in commands(document)]
    if any(arguments[0] == "train" for arguments in lines):
        shutil.rmtree(folder / "runs")  # a run folder belongs to one configuration: here, to the document's own
    for arguments in lines:
        assert run([*arguments, "--quiet"], folder) == 0, arguments


@pytest.mark.parametrize(("english", "chinese"), PAIRS, ids=lambda path: path.name)
def test_the_two_languages_say_the_same(english, chinese):
    texts = [path.read_text(encoding="utf-8") for path in (english, chinese)]
    levels = [re.findall(r"^(#+) ", text, re.MULTILINE) for text in texts]
    assert levels[0] == levels[1], "the headings"
    blocks = [[block["body"] for block in BLOCK.finditer(text)] for text in texts]
    assert blocks[0] == blocks[1], "the commands"
    links = [
        sorted(link.replace(".zh", "").replace("-zh", "") for link in re.findall(r"\]\(([^)h][^)]*)\)", text))
        for text in texts
    ]
    own = [[link for link in found if "README" not in link and "gallery" not in link] for found in links]
    assert own[0] == own[1], "the links"
    numbers = [sorted(set(NUMBER.findall(BLOCK.sub("", text)))) for text in texts]
    assert numbers[0] == numbers[1], "the figures"


def test_the_readme_is_short():
    for name in ("README.md", "README.zh-CN.md"):
        assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) < 200


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_links_of_documents_lead_somewhere(document: Path):
    text = document.read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (document.parent / link).exists(), f"{document.name} links to {link}"


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the notebook's own backend is what puts figures under a cell
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(ROOT / "docs" / "notebook.ipynb", as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=300, startup_timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    shown = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in shown), "figures are shown"
    assert any("text/html" in output.get("data", {}) for output in shown), "tables are shown"


def test_the_way_of_the_data_names_files_that_are_there_and_none_twice():
    text = (ROOT / "docs" / "data-flow.md").read_text(encoding="utf-8")
    ways = [re.findall(r"^\d+\. `([^`]+)`", part, re.MULTILINE) for part in text.split("\n## ")[1:]]
    assert len(ways) == 4
    for way in ways:
        assert len(way) == len(set(way)) >= 9
        for path in way:
            assert (ROOT / "glmspectra" / path).is_file(), path
