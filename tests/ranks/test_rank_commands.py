"""svd, suggest-rank, train --ranks, delta and suggest-rank again, by the command line on the embedded model."""

import json

import pytest

from glmspectra.cli.main import main
from tests.few_rows import keep_rows


def run(capsys, *arguments: str) -> dict:
    """One command with --json; its one object."""
    finish(*arguments, "--json", "--quiet")
    return json.loads(capsys.readouterr().out)


def finish(*arguments: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
        raise SystemExit(0)  # a command that returns has done its work
    assert stopped.value.code in (0, None)


def refused(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--quiet"])
    assert stopped.value.code == 2
    return capsys.readouterr().err


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_listing_the_criteria_needs_no_model(here, capsys):
    found = run(capsys, "suggest-rank", "--list")
    assert {"uniform", "random", "effective-rank", "delta-threshold", "quantisation"} <= set(found)
    assert all(len(entry["source"]) > 60 for entry in found.values())


def test_ranks_before_a_measurement_are_refused_with_the_command_to_run(here, capsys):
    assert "glmspectra svd --layers all" in refused(capsys, "suggest-rank")
    assert "holds neither an adapter" in refused(capsys, "suggest-rank", "--delta", str(here))


@pytest.mark.slow
def test_from_spectra_to_a_trained_adapter_and_back(here, capsys):
    run(capsys, "svd", "--layers", "all", "--no-values", "--no-report")
    suggested = run(capsys, "suggest-rank", "--budget", "like:r=4", "--no-report")
    assert suggested["criterion"] == "effective-rank"
    content = json.loads((here / suggested["ranks_file"]).read_text())
    finish("init", "--quiet")
    keep_rows(here / "data", 48, 8)
    capsys.readouterr()
    settings = [
        f"--set={key}"
        for key in ("finetune.method=lora", "train.max_steps=4", "train.save_steps=2", "train.eval_strategy=no")
    ]
    trained = run(capsys, "train", "--ranks", suggested["ranks_file"], "--no-report", *settings)
    output = next(path.parent for path in here.rglob("trainer_state.json") if "checkpoint" not in str(path))
    adapter = json.loads(next(output.rglob("adapter_config.json")).read_text())
    assert adapter["rank_pattern"] == content["lora_args"]["rank_pattern"]
    changed = run(capsys, "delta", str(output), "--no-report")
    assert changed["states"] == 2, "checkpoint-2 and the end"
    from glmspectra.store import read_run

    rows = read_run(here / changed["tables"]).matrices
    rows = rows[(rows["quantity"] == "delta") & (rows["step"] == rows["step"].max())]
    allotted = {name: int(rank) for name, rank in zip(rows["name"], rows["allotted_rank"], strict=True)}
    assert allotted == {name: rank for name, rank in content["ranks"].items() if rank}
    cost = {
        t: r * (rows_ + cols)
        for t, r, rows_, cols in zip(rows["name"], rows["allotted_rank"], rows["rows"], rows["cols"], strict=True)
    }
    assert sum(cost.values()) == suggested["parameters"]
    assert str(suggested["parameters"]) in json.dumps(trained)
    again = run(capsys, "suggest-rank", "--budget", "like:r=2", "--delta", str(output), "--no-report")
    assert again["criterion"] == "delta-threshold"
    assert again["parameters"] <= again["budget_parameters"]
    assert "steps of a pilot" in again["stability"]
    by_gradient = run(
        capsys,
        "suggest-rank",
        "--gradients=1",
        "--criterion=gradient",
        "--targets=dense",
        "--no-report",
        "--budget=like:r=3",
    )
    assert by_gradient["how"] == "best sum"
    assert 0 < by_gradient["parameters"] <= by_gradient["budget_parameters"]


@pytest.mark.slow
def test_a_pilot_is_trained_measured_and_not_trained_twice(here, capsys):
    run(capsys, "svd", "--layers", "all", "--no-values", "--no-report", "--matrices", "dense,query_key_value")
    finish("init", "--quiet")
    keep_rows(here / "data", 48, 8)
    capsys.readouterr()
    asked = [
        "suggest-rank",
        "--pilot=4",
        "--pilot-seeds=2",
        "--args=args_file/lora",
        "--budget=like:r=2",
        "--no-report",
    ]
    tested = run(capsys, *asked)
    portfolio = tested["portfolio"]
    assert tested["criterion"] == portfolio["chosen"]
    assert portfolio["pilot_steps"] == 8
    losses = {trial["criterion"]: trial["loss"] for trial in portfolio["trials"]}
    assert {"uniform", "delta-threshold", "type:delta-threshold", "effective-rank"} <= set(losses)
    assert list(losses.values()) == sorted(losses.values())
    asked.append("--criterion=delta-threshold")
    first = run(capsys, *asked)
    assert first["portfolio"] is None
    assert first["deltas"] == 2
    assert set(first["stability"]) == {"pilots", "steps of a pilot"}
    adapters = sorted(here.glob("runs/pilots/*/seed-*/final_adapter/adapter_config.json"))
    assert [json.loads(path.read_text())["r"] for path in adapters] == [6, 6], "three times the mean rank"
    times = [path.stat().st_mtime_ns for path in adapters]
    again = run(capsys, *asked)
    assert [path.stat().st_mtime_ns for path in adapters] == times
    assert again["by_matrix"] == first["by_matrix"]
