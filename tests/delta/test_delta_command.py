"""`glmspectra delta` as a command: one JSON object, cost before work, comparison of adapters, exit statuses."""

import json

import pytest

from glmspectra.cli.main import main
from glmspectra.store import read_run
from tests.delta.made_runs import random_factors, write_adapter, write_base, write_merged


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
        raise SystemExit(0)
    code = stopped.value.code or 0
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_base(tmp_path / "base", layers=2)
    write_adapter(tmp_path / "one", random_factors(2, 4, seed=1))
    write_adapter(tmp_path / "two", random_factors(2, 4, seed=2))
    return tmp_path


def test_an_adapter_alone_in_json(here, capsys):
    code, out, err = run(capsys, "delta", "one", "--json", "--no-report")
    facts = json.loads(out)
    assert (code, facts["matrices"], facts["measured"], facts["kinds"]) == (0, 8, 8, ["lora"])
    assert set(facts["summary"]) == {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}
    assert all(entry["rank"] == entry["allotted_rank"] == 4 for entry in facts["summary"].values())
    assert "reads" not in err, "nothing is streamed, so there is no cost to say"
    table = read_run(here / facts["tables"]).matrices
    assert len(table) == 8
    assert json.loads(run(capsys, "delta", "one", "--json", "--no-report")[1])["measured"] == 0


def test_the_base_is_streamed_when_asked_and_the_cost_said_first(here, capsys):
    code, out, err = run(capsys, "delta", "base", "one", "--against-base", "--no-report", "--layers", "0")
    assert code == 0
    assert "4 matrices, 1 state: reads 33.0 KiB and decomposes up to 48 x 48" in err
    assert "intruders" in out
    assert "4 matrices (lora), in" in out


def test_two_adapters_are_compared(here, capsys):
    code, out, _ = run(capsys, "delta", "one", "--compare", "two", "--json", "--no-report", "--quiet")
    assert code == 0
    other = json.loads(out)["similarity"]
    assert len(other) == 8
    assert all(abs(entry["cosine"]) < 0.5 for entry in other.values())
    same = json.loads(run(capsys, "delta", "one", "--compare", "one", "--json", "--no-report", "--quiet")[1])
    assert all(entry["cosine"] == pytest.approx(1) for entry in same["similarity"].values())


def test_wrong_requests_are_one_sentence_with_exit_status_2(here, capsys):
    code, _, err = run(capsys, "delta", "nowhere")
    assert (code, err.count("\n")) == (2, 1)
    assert "nowhere: there is no such folder" in err
    write_merged(here / "base", here / "merged", random_factors(2, 4, seed=3))
    code, _, err = run(capsys, "delta", "merged")
    assert code == 2
    assert "write glmspectra delta BASE TUNED" in err
    code, _, err = run(capsys, "delta", "one", "--against-base")
    assert code == 2
    assert "--against-base cannot be computed without the base weights" in err


def test_the_base_that_an_adapter_names_is_taken_where_it_is_there(here, capsys):
    path = here / "one" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(here / "base")}))
    asked = ("--against-base", "--json", "--no-report", "--quiet")
    code, out, _ = run(capsys, "delta", "one", *asked)
    assert code == 0
    named = json.loads(out)
    assert f"the base is {here / 'base'}, which the adapter names." in named["notes"]
    assert named["summary"] == json.loads(run(capsys, "delta", "base", "one", *asked, "--fresh")[1])["summary"]


@pytest.mark.slow
def test_the_report_draws_what_changed(here, capsys):
    code, out, _ = run(capsys, "delta", "base", "one", "--against-base", "--svg", "--json", "--quiet")
    assert code == 0
    page = here / json.loads(out)["report"]
    assert "What training changed" in page.read_text(encoding="utf-8")
    drawn = {path.stem for path in page.parent.rglob("*.svg")}
    assert {"delta_spectra", "delta_rank_use", "delta_intruders", "delta_merged"} <= drawn


def test_a_base_that_was_measured_when_columns_meant_something_else_is_passed_over(here, capsys):
    assert run(capsys, "svd", "--model", "base", "--no-report", "--quiet")[0] == 0
    _, out, _ = run(capsys, "delta", "base", "one", "--no-report", "--quiet", "--json")
    assert all("relative_frobenius" in entry for entry in json.loads(out)["summary"].values())
    manifest = next((here / "param_matrix").glob("base-*/manifest.json"))
    old = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**old, "schema": old["schema"] - 1}))
    code, out, _ = run(capsys, "delta", "base", "one", "--no-report", "--quiet", "--json")
    assert code == 0
    assert not any("relative_frobenius" in entry for entry in json.loads(out)["summary"].values())


def test_what_suggest_rank_says_is_kept_for_its_report(here, capsys):
    assert run(capsys, "svd", "--model", "base", "--no-report", "--no-values", "--quiet")[0] == 0
    asked = ("suggest-rank", "--model", "base", "--delta", "one", "--delta", "two", "--budget", "like:r=2")
    code, out, _ = run(capsys, *asked, "--no-report")
    assert code == 0
    results = json.loads(next((here / "param_matrix").glob("base-*/ranks_summary.json")).read_text())
    assert any(line.startswith("Between 2 pilots") for line in results["lines"])
    assert all(line in out for line in results["lines"])


def test_a_base_of_other_matrices_is_told_apart(here, capsys):
    write_merged(here / "base", here / "merged", random_factors(2, 4, seed=1))
    write_base(here / "short", layers=1)
    code, out, _ = run(capsys, "delta", "short", "merged", "--no-report", "--json", "--quiet")
    assert code == 0
    (note,) = json.loads(out)["notes"]
    assert "holds 4 matrices that the base short lacks" in note
    assert "layers.1." in note
    assert json.loads(run(capsys, "delta", "base", "merged", "--no-report", "--json", "--quiet")[1])["notes"] == []
    code, _, err = run(capsys, "delta", "merged")
    assert code == 2
    assert "merged is a model, no adapter" in err
    (here / "one" / "adapter_config.json").unlink()
    code, _, err = run(capsys, "delta", "one")
    assert code == 2
    assert "no adapter_config.json" in err
