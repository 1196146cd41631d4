"""NaN or infinity in the base or after training: a row says so, and the rest is measured."""

import json

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from glmspectra.cli.main import main
from glmspectra.errors import RequestError
from glmspectra.ranks.evidence import gather
from glmspectra.store import read_run
from glmspectra.sweep.delta import measure_delta
from glmspectra.sweep.delta_plan import DeltaOptions, plan_delta
from tests.delta.made_runs import random_factors, write_adapter, write_base, write_merged
from tests.faults.commands import begin_two

BROKEN = "transformer.encoder.layers.1.self_attention.dense.weight"


def spoil(folder, name=BROKEN, file="model.safetensors", value=float("nan")):
    tensors = load_file(folder / file)
    tensors[name][1, 2] = value
    save_file(tensors, folder / file, metadata={"format": "pt"})
    return folder


def measured(tmp_path, base, tuned, **options):
    plan = plan_delta(base, tuned, DeltaOptions(device="cpu", quiet=True, **options))
    try:
        result = measure_delta(plan, tmp_path / "param_matrix")
    finally:
        plan.close()
    return read_run(result.folder), result


def statuses(run, quantity):
    rows = run.matrices[run.matrices["quantity"] == quantity]
    return dict(zip(rows["name"], rows["status"], strict=True))


def test_a_broken_base_weight_costs_only_its_own_row(tmp_path):
    base = write_base(tmp_path / "base", layers=2)
    merged = write_merged(base, tmp_path / "merged", random_factors(2, 2, seed=1))
    run, result = measured(tmp_path, spoil(base), merged, against_base=True)
    assert result.nonfinite == [BROKEN]
    for quantity in ("weight", "delta", "merged"):
        found = statuses(run, quantity)
        assert len(found) == 8, quantity
        assert [name for name, status in found.items() if status == "nonfinite"] == [BROKEN], quantity
    assert BROKEN not in set(run.singular_values["name"])
    _, second = measured(tmp_path, base, merged, against_base=True)
    assert (second.measured, second.nonfinite) == (0, [BROKEN]), "it is finished, and said again"


def test_factors_tell_their_change_beside_a_broken_base(tmp_path):
    base = spoil(write_base(tmp_path / "base", layers=2), value=float("inf"))
    adapter = write_adapter(tmp_path / "adapter", random_factors(2, 4, seed=2))
    run, result = measured(tmp_path, base, adapter, against_base=True)
    assert set(statuses(run, "delta").values()) == {"ok"}
    assert statuses(run, "merged")[BROKEN] == statuses(run, "weight")[BROKEN] == "nonfinite"
    assert result.nonfinite == [BROKEN]
    alone, _ = measured(tmp_path / "alone", None, adapter)
    rows = [r.matrices[r.matrices["quantity"] == "delta"].set_index("name").loc[BROKEN] for r in (run, alone)]
    assert rows[0]["frobenius_norm"] == pytest.approx(rows[1]["frobenius_norm"], rel=1e-12)


def test_an_adapter_that_diverged_has_rows_and_is_no_evidence(tmp_path):
    adapter = write_adapter(tmp_path / "adapter", random_factors(2, 4, seed=3))
    key = f"base_model.model.{BROKEN.removesuffix('.weight')}.lora_B.weight"
    base = write_base(tmp_path / "base", layers=2)
    run, result = measured(tmp_path, base, spoil(adapter, key, "adapter_model.safetensors"))
    assert result.nonfinite == [BROKEN]
    assert sum(status == "ok" for status in statuses(run, "delta").values()) == 7
    with pytest.raises(RequestError, match=rf"NaN or infinity in the change of {BROKEN}.*an earlier checkpoint"):
        gather(None, [run])


def test_the_command_ends_with_status_1_and_names_the_matrix(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    base = write_base(tmp_path / "base", layers=2)
    spoil(write_merged(base, tmp_path / "merged", random_factors(2, 2, seed=4)))
    with pytest.raises(SystemExit) as stopped:
        main(["delta", "base", "merged"])
    assert stopped.value.code == 1
    out = capsys.readouterr().out
    assert "1 of them holds NaN, infinity or numbers beyond float32" in out
    assert BROKEN in out
    page = next((tmp_path / "reports").glob("*/index.html")).read_text("utf-8")
    assert "NaN" in page


@pytest.mark.slow
def test_two_processes_share_a_delta_and_give_the_same_tables(tmp_path):
    base = write_base(tmp_path / "base", layers=3, dtype=torch.bfloat16)
    merged = write_merged(base, tmp_path / "merged", random_factors(3, 2, seed=5))
    one, _ = measured(tmp_path, base, merged, against_base=True)
    command = ["delta", base, merged, "--against-base", "--json", "--quiet", "--no-report", "--device", "cpu"]
    out = tmp_path / "shared"
    both = begin_two(tmp_path, *command, "--out", out)
    assert [process.wait() for process in both] == [0, 0], both[0].said()
    facts = json.loads(both[0].said())
    assert facts["measured"] == 12
    two = read_run(out / "param_matrix" / facts["run"])
    for table in ("matrices", "singular_values"):
        left, right = (getattr(run, table).drop(columns="seconds", errors="ignore") for run in (one, two))
        # On another number of threads sums are rounded in another order.
        pd.testing.assert_frame_equal(left, right, check_exact=False, rtol=1e-6, atol=1e-12)
