"""Float16 with loss scaling, as GPUs before Ampere get it: on the CPU by torch's own scaler, and on a GPU as it is."""

import itertools

import pytest
import torch
from transformers import TrainerCallback

from glmspectra.tuning.settings.load import load_settings
from glmspectra.tuning.training.run import prepare_run, train
from tests.tuning.tiny_run import ADALORA, make_run, write_args


def scaled_run(tmp_path, model, data, initial, **changes):
    """A run under fp16 on the CPU. Accelerate makes no scaler there, so the test gives it torch's."""
    run = make_run(tmp_path, model, data, train={"fp16": True, "max_steps": 8}, **changes)
    accelerator = run.trainer.accelerator
    assert accelerator.mixed_precision == "fp16"
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=initial)
    accelerator.native_amp = True
    return run


def losses(run):
    return [entry["loss"] for entry in run.trainer.state.log_history if "loss" in entry]


def test_scaled_losses_are_those_of_float32(tmp_path, model, data):
    plain = make_run(tmp_path / "plain", model, data, train={"max_steps": 8}, lora={"lora_dropout": 0.0})
    train(plain)
    half = scaled_run(tmp_path / "half", model, data, 2.0**10, lora={"lora_dropout": 0.0})
    trained = [parameter for parameter in half.model.parameters() if parameter.requires_grad]
    assert {parameter.dtype for parameter in trained} == {torch.float32}
    assert {parameter.dtype for parameter in half.model.parameters()} == {torch.float32, torch.float16}
    train(half)
    assert losses(half) == pytest.approx(losses(plain), abs=0.02)
    assert losses(half)[-1] < losses(half)[0] - 0.1
    norms = [[e["grad_norm"] for e in run.trainer.state.log_history if "grad_norm" in e] for run in (plain, half)]
    assert norms[1] == pytest.approx(norms[0], rel=0.05)  # unscaled before they are measured and clipped


class Watch(TrainerCallback):
    """The scale after each step, and whether all trained matrices still are what they were before it."""

    def __init__(self, run):
        self.run = run
        self.seen = []
        self.before = self.matrices()

    def matrices(self):
        return [p.detach().clone() for p in self.run.model.parameters() if p.requires_grad]

    def on_step_end(self, args, state, control, **kwargs):
        now = self.matrices()
        same = all(torch.equal(old, new) for old, new in zip(self.before, now, strict=True))
        self.seen.append((self.run.trainer.accelerator.scaler.get_scale(), same))
        self.before = now


@pytest.mark.parametrize("method", ["lora", "adalora"])
def test_an_overflow_skips_the_step_and_halves_the_scale(tmp_path, model, data, method):
    lora = ADALORA | {"tinit": 3} if method == "adalora" else {}
    run = scaled_run(tmp_path, model, data, 2.0**21, finetune={"method": method}, lora=lora | {"lora_dropout": 0.0})
    watch = Watch(run)
    run.trainer.add_callback(watch)
    result = train(run)
    scales = [2.0**21, *(scale for scale, _ in watch.seen)]
    skipped = [after < before for before, after in itertools.pairwise(scales)]
    assert skipped[0]
    assert not skipped[-1]
    assert [same for _, same in watch.seen] == skipped
    assert all(torch.isfinite(value).all() for value in watch.before)
    if method == "adalora":
        assert sum(result["ranks"].values()) == 2 * len(result["ranks"])


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["lora", "qlora", "adalora", "qadalora"])
def test_float16_with_scaling_on_a_gpu(tmp_path, model, data, method):
    lora = ADALORA if method.endswith("adalora") else {}
    args = write_args(
        tmp_path / "args", model, data, {"method": method, "dtype": "float16"}, lora, {"fp16": True, "max_steps": 30}
    )
    run = prepare_run(load_settings(args), device="cuda", quiet=True)
    assert run.precision.autocast == "fp16"
    assert run.trainer.accelerator.scaler.is_enabled()
    assert {p.dtype for p in run.model.parameters() if p.requires_grad} == {torch.float32}
    train(run)
    found = losses(run)
    assert sum(found[-5:]) < sum(found[:5])
    assert run.trainer.accelerator.scaler.get_scale() > 0
    assert all(torch.isfinite(p).all() for p in run.model.parameters() if p.requires_grad)
