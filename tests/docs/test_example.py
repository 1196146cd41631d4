"""The example in `param_matrix/` and `reports/`: what the code writes today, and in no command's way."""

import importlib.util
import json
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest

from glmspectra.figures import write_overview, write_report
from glmspectra.store import list_runs, read_run
from tests.docs.documents import ROOT, run

TABLES, PAGE = ROOT / "param_matrix" / "example", ROOT / "reports" / "example"
BEHIND = "the example is behind the code: run `make example`"


@pytest.fixture(scope="module")
def example():
    """scripts/example.py as a module."""
    specification = importlib.util.spec_from_file_location("example", ROOT / "scripts" / "example.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def kept():
    [folder] = list_runs(TABLES)
    return folder


@pytest.fixture(scope="module")
def anew(example, tmp_path_factory):
    work = tmp_path_factory.mktemp("example")
    return example.keep(example.measure(work), work / "kept")


def without_circumstances(manifest):
    """A manifest without what differs from one machine and moment to the next."""
    left = {key: value for key, value in manifest.items() if key not in ("versions", "seconds", "tables")}
    moments = ("started", "finished")
    requests = left["requests"].items()
    left["requests"] = {
        name: {key: value for key, value in asked.items() if key not in moments} for name, asked in requests
    }
    return left


def test_the_tables_are_what_is_measured_today(kept, anew):
    assert kept.name == anew.name, BEHIND
    assert sorted(path.name for path in kept.iterdir()) == sorted(path.name for path in anew.iterdir()), BEHIND
    manifests = [json.loads((folder / "manifest.json").read_text()) for folder in (kept, anew)]
    assert without_circumstances(manifests[0]) == without_circumstances(manifests[1]), BEHIND
    for name in ("matrices", "singular_values", "histograms"):
        tables = [getattr(read_run(folder), name) for folder in (kept, anew)]
        tables = [table.drop(columns="seconds", errors="ignore") for table in tables]
        pd.testing.assert_frame_equal(*tables, rtol=1e-6, obj=f"{name} ({BEHIND})")


def test_a_change_of_one_value_would_be_seen(kept):
    table = read_run(kept).matrices
    changed = table.assign(stable_rank=table["stable_rank"] * np.where(table.index == 3, 1.001, 1.0))
    with pytest.raises(AssertionError):
        pd.testing.assert_frame_equal(table, changed, rtol=1e-6)


def test_the_page_is_what_is_drawn_of_these_tables_today(kept, tmp_path):
    page = write_report(kept, tmp_path / kept.name)
    assert page.read_bytes() == (PAGE / kept.name / "index.html").read_bytes(), BEHIND


def test_the_text_beside_the_tables_holds_their_rows(kept):
    text, table = pd.read_csv(kept / "matrices.csv"), read_run(kept).matrices
    assert list(text["name"]) == list(table["name"])
    for column in ("spectral_norm", "stable_rank", "mp_spikes", "alpha"):
        np.testing.assert_allclose(text[column], table[column].astype(float), rtol=1e-5)
    lines = [json.loads(line) for line in (kept / "singular_value.jsonl").read_text().splitlines()]
    assert len(lines) == table["layer"].nunique()


def test_no_command_takes_the_example_for_a_run_of_the_user(tmp_path, monkeypatch, capsys):
    for folder in ("param_matrix", "reports"):
        (tmp_path / folder).mkdir()
        shutil.copytree(ROOT / folder / "example", tmp_path / folder / "example")
        shutil.copyfile(ROOT / folder / "README.md", tmp_path / folder / "README.md")
    assert list_runs(tmp_path / "param_matrix") == []
    assert write_overview(tmp_path / "reports") is None
    monkeypatch.chdir(tmp_path)
    assert run(["report", "--quiet"], tmp_path) == 2
    assert "there is no run under param_matrix/" in capsys.readouterr().err


def test_git_keeps_the_example_and_only_that():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")

    def ignored(path):
        return subprocess.run(["git", "check-ignore", "-q", "--no-index", path], cwd=ROOT).returncode == 0

    for folder in ("param_matrix", "reports"):
        assert ignored(f"{folder}/nano-e561d4abc85aa214/manifest.json")
        assert ignored(f"{folder}/index.html")
        assert not ignored(f"{folder}/README.md")
        assert not ignored(f"{folder}/example/nano-e561d4abc85aa214/manifest.json")
    size = sum(path.stat().st_size for folder in (TABLES, PAGE) for path in folder.rglob("*") if path.is_file())
    assert size < 1_500_000
