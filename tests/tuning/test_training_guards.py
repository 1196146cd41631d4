"""Each guard of training stops with one sentence that names what is wrong, and lets what is right through."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from glmspectra.checkpoint import open_checkpoint
from glmspectra.cli.train import only_card, settings_options
from glmspectra.device import choose_device
from glmspectra.errors import ConfigError, RequestError, TrainingError
from glmspectra.tuning.memory.longest_batch import longest_batch_step
from glmspectra.tuning.model.adapter_products import InputTypedLinear, follow_input_dtype
from glmspectra.tuning.model.four_bit import check_four_bit, check_layout, four_bit_modules
from glmspectra.tuning.model.loading import load_base
from glmspectra.tuning.model.precision import Precision, choose_precision
from glmspectra.tuning.model.schedule import resolve_schedule
from glmspectra.tuning.model.targets import check_pattern, resolve_names, resolve_targets
from glmspectra.tuning.settings.load import load_settings
from glmspectra.tuning.training.checkpoints import prune
from glmspectra.tuning.training.divergence import Explosion, ExplosionWatch, StepMeasure
from glmspectra.tuning.training.run import build_run, train
from tests.tuning.tiny_run import make_run, write_args, write_model


@pytest.fixture
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=60,
        )
    )


def lora(**changes):
    values = {
        "target_modules": ["q_proj"], "exclude_modules": None, "layers_to_transform": None, "layers_pattern": None,
    }  # fmt: skip
    return SimpleNamespace(**(values | changes))


# Names


def test_targets_follow_peft(llama):
    assert resolve_targets(llama, lora()) == [f"model.layers.{i}.self_attn.q_proj" for i in (0, 1)]
    assert resolve_targets(llama, lora(layers_to_transform=[1])) == ["model.layers.1.self_attn.q_proj"]
    assert resolve_targets(llama, lora(target_modules=r".*layers\.0\..*_proj", exclude_modules=["up_proj"])) == [
        f"model.layers.0.{name}"
        for name in (
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "self_attn.o_proj",
            "mlp.gate_proj",
            "mlp.down_proj",
        )
    ]
    assert len(resolve_targets(llama, lora(target_modules="all-linear"))) == 14  # not the output layer
    assert len(resolve_targets(llama, lora(target_modules=None))) == 6  # the family's own: q, k, v


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_modules": ["q_proj", "qproj"]}, "target_modules key qproj matches no module.*nearest are: q_proj"),
        ({"target_modules": ["lm_head"]}, "matches no module"),
        ({"exclude_modules": ["v_prj"]}, "exclude_modules key v_prj matches no module.*v_proj"),
        ({"layers_to_transform": [7]}, "together leave no module"),
    ],
)
def test_targets_that_match_nothing_stop(llama, changes, message):
    with pytest.raises(ConfigError, match=message):
        resolve_targets(llama, lora(**changes))


def test_pattern_keys_that_change_nothing_stop(llama):
    adapted = resolve_targets(llama, lora(target_modules=["q_proj", "v_proj"]))
    check_pattern("rank_pattern", {"layers.1.self_attn.q_proj": 3, "q_proj": 5}, adapted)
    with pytest.raises(ConfigError, match="key o_proj matches no module that can be adapted"):
        check_pattern("rank_pattern", {"o_proj": 3}, adapted)
    with pytest.raises(ConfigError, match=r"leave out base_model\.model\."):
        check_pattern("alpha_pattern", {"base_model.model.model.layers.0.self_attn.q_proj": 3}, adapted)
    with pytest.raises(ConfigError, match=r"layers.1.self_attn.q_proj changes nothing: key q_proj stands before it"):
        check_pattern("rank_pattern", {"q_proj": 5, "layers.1.self_attn.q_proj": 3}, adapted)
    with pytest.raises(ConfigError, match="no regular expression"):
        check_pattern("rank_pattern", {"q_proj(": 5}, adapted)
    assert resolve_names("start_ranks", {"0.self_attn.q_proj": 2}, adapted) == {adapted[0]: 2}
    with pytest.raises(ConfigError, match="fits 2 modules"):
        resolve_names("start_ranks", {"q_proj": 2}, adapted)


# Precision and device


def settings(tmp_path, model, data, **finetune):
    return load_settings(write_args(tmp_path / "args", model, data, finetune))


def test_precision_is_what_is_given_and_float32_on_a_cpu(tmp_path, model, data):
    cpu = torch.device("cpu")
    plain = settings(tmp_path, model, data)
    assert choose_precision(plain, cpu) == Precision(torch.float32, torch.float32, None)
    study = settings(tmp_path, model, data, load_in_4bit=True, bnb_4bit_compute_dtype="float32")
    assert choose_precision(study, cpu) == Precision(torch.float32, torch.float32, None)
    half = settings(tmp_path, model, data, method="qlora", dtype="bfloat16")
    assert choose_precision(half, cpu) == Precision(torch.bfloat16, torch.bfloat16, None)
    half.lora.use_dora = True
    assert choose_precision(half, cpu).autocast == "bf16"
    old = settings(tmp_path, model, data)
    old.train.fp16 = True
    assert choose_precision(old, cpu) == Precision(torch.float16, torch.float16, "fp16")
    assert Precision(torch.float16, torch.float16, "fp16").trainer_arguments() == {"bf16": False, "fp16": True}


def test_a_gpu_before_ampere_gets_float16_with_scaling(tmp_path, model, data, monkeypatch):
    given = settings(tmp_path, model, data, method="qlora")
    for capability, expected in (
        ((7, 5), Precision(torch.float16, torch.float16, "fp16")),
        ((8, 0), Precision(torch.bfloat16, torch.bfloat16, None)),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, answer=capability: answer)
        assert choose_precision(given, torch.device("cuda", 0)) == expected


def test_devices_that_are_not_there_are_refused(monkeypatch):
    assert choose_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(RequestError, match="there are 1 CUDA devices here"):
        choose_device("cuda:3")
    with pytest.raises(RequestError, match="say auto, cpu, cuda or cuda:N"):
        choose_device("gpu")


def test_lora_computes_in_the_type_of_the_base_with_float32_parameters(llama):
    wrapped = get_peft_model(llama.to(torch.bfloat16), LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    names = [name for name, _ in wrapped.named_parameters()]
    assert follow_input_dtype(wrapped, "default") == 4
    assert [name for name, _ in wrapped.named_parameters()] == names
    factors = [module for module in wrapped.modules() if isinstance(module, InputTypedLinear)]
    assert len(factors) == 8
    assert all(module.weight.dtype == torch.float32 for module in factors)
    wrapped(input_ids=torch.arange(8)[None]).logits.float().square().sum().backward()
    gradients = [p.grad for n, p in wrapped.named_parameters() if "lora_B" in n]
    assert all(gradient.dtype == torch.float32 and gradient.abs().sum() > 0 for gradient in gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_joined_lora_products_are_pefts_own(llama, dtype):
    config = LoraConfig(r=4, lora_alpha=7, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    wrapped = get_peft_model(llama.to(dtype), config)
    ids = torch.arange(12).view(2, 6)

    def answer():
        wrapped.zero_grad()
        logits = wrapped(input_ids=ids).logits.float()
        logits.square().mean().backward()
        return [logits.detach(), *(p.grad.clone() for p in wrapped.parameters() if p.requires_grad)]

    due = answer()
    with wrapped.disable_adapter():
        bare = wrapped(input_ids=ids).logits
    assert follow_input_dtype(wrapped, "default") == 4
    limit = 1e-5 if dtype == torch.float32 else 3e-2
    for found, expected in zip(answer(), due, strict=True):
        assert (found - expected).norm() <= limit * expected.norm()
    with wrapped.disable_adapter():
        assert torch.equal(wrapped(input_ids=ids).logits, bare)  # the base's own output is not written over
    wrapped.merge_adapter()
    merged = wrapped(input_ids=ids).logits.float()
    wrapped.unmerge_adapter()
    assert (merged - due[0]).norm() <= limit * due[0].norm()


# 4 bits


def test_four_bit_count_is_checked(model):
    from transformers import BitsAndBytesConfig

    precision = Precision(torch.float32, torch.float32, None)
    whole = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    loaded = load_base(model, precision, torch.device("cpu"), whole)
    assert len(four_bit_modules(loaded)) == 8
    partial = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=["dense_4h_to_h", "output_layer"])
    with pytest.raises(TrainingError, match=r"6 of 8 linear layers came out in 4 bits, .*dense_4h_to_h among those"):
        load_base(model, precision, torch.device("cpu"), partial)
    with pytest.raises(TrainingError, match="0 of 8 linear layers"):
        check_four_bit(load_base(model, precision, torch.device("cpu")))


def test_gradients_through_a_four_bit_base_survive_an_evaluation(tmp_path, data):
    # On a CPU with AVX512_BF16 bitsandbytes repacks the weights in the first forward in evaluation mode, and
    # gradients through them are gone (negative control below, where the CPU has it).
    llama = write_model(tmp_path / "llama")  # no biases: with them bitsandbytes at least raises
    run = make_run(tmp_path, llama, data, {"method": "qlora"}, {"lora_dropout": 0.0, "target_modules": ["q_proj"]})
    batch = run.trainer.data_collator([run.data.train[row] for row in range(4)])
    batch.pop("real_tokens")

    def gradients():
        run.model.train()
        run.model.zero_grad()
        run.trainer.token_loss(run.model, dict(batch)).nll.mean().backward()
        return {name: p.grad.clone() for name, p in run.model.named_parameters() if p.grad is not None}

    before = gradients()
    run.trainer.evaluate(run.data.train.select(range(8)))
    with torch.no_grad():
        run.model.eval()(input_ids=batch["input_ids"])
    after = gradients()
    assert before.keys() == after.keys()
    assert len(before) == 4
    assert all(torch.equal(before[name], after[name]) for name in before)
    check_layout(run.model)

    from bitsandbytes.nn.modules import has_avx512bf16

    if has_avx512bf16():
        for module in four_bit_modules(run.model).values():
            module.support_avx512bf16_for_cpu = True
        with torch.no_grad():
            run.model.eval()(input_ids=batch["input_ids"])
        lost = gradients()
        # Layer 0 hangs on gradients through later layers' weights; B starts at zero, so its own input is no
        # help.
        assert any(name not in lost or not torch.equal(lost[name], before[name]) for name in before)
        with pytest.raises(TrainingError, match="was repacked for inference"):
            check_layout(run.model)


# Numbers that are not finite


def test_first_non_finite_names_the_module_nearest_to_the_output():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    model(torch.ones(1, 2)).sum().backward()
    loss = torch.tensor(1.5)
    assert StepMeasure(3, loss, model).first_non_finite() is None
    model[0].weight.grad[0, 0] = torch.nan
    model[1].bias.grad[0] = torch.inf
    measure = StepMeasure(3, loss, model)
    model.zero_grad()  # as the trainer does before it looks
    assert measure.first_non_finite() == ("1.bias", 2, 6)
    assert measure.loss == 1.5


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("spoilt", [4, 5])
def test_a_gradient_that_is_not_finite_stops_with_the_module_and_the_last_checkpoint(
    tmp_path, model, data, later, spoilt
):
    run = make_run(tmp_path, model, data, train={"save_steps": 2})
    run.trainer._look_later = later  # as on a GPU; what went wrong in step 4 is still seen before step 4 is saved
    layer = run.model.base_model.model.transformer.encoder.layers[0].self_attention.query_key_value
    calls = []

    def spoil(gradient):
        calls.append(1)
        return gradient * (torch.nan if len(calls) == spoilt else 1.0)

    layer.lora_B["LoraAdapter"].weight.register_hook(spoil)
    with pytest.raises(TrainingError) as error:
        train(run)
    message = str(error.value)
    assert (
        f"gradient of transformer.encoder.layers.0.self_attention.query_key_value is not finite at step {spoilt}"
        in message
    )
    last = 2 if spoilt == 4 else 4
    assert message.endswith(f"the last good checkpoint is {run.output_dir / f'checkpoint-{last}'}.")


@pytest.mark.parametrize("later", [False, True])
def test_a_loss_that_is_not_finite_stops(tmp_path, model, data, later):
    run = make_run(tmp_path, model, data)
    run.trainer._look_later = later
    with torch.no_grad():
        run.model.base_model.model.transformer.encoder.final_layernorm.weight.fill_(torch.nan)
    with pytest.raises(TrainingError, match=r"the loss is nan at step 1; no checkpoint had been saved\."):
        train(run)


def test_explosion_is_worse_than_guessing_and_than_before():
    watch = ExplosionWatch(vocabulary=100, window=4, factor=3.0)  # ln 100 = 4.6
    assert not any(watch.exploded(loss) for loss in [5.0, 4.0, 3.0, 2.0, 1.0, 1.0, 1.0, 1.0, 4.5, 4.4, 4.5, 4.5])
    assert [watch.exploded(loss) for loss in [4.7, 5.5, 4.0, 4.5]] == [False, True, True, True]
    copy = ExplosionWatch(vocabulary=100, window=4)
    copy.restore(Explosion.model_validate_json(watch.state().model_dump_json()))
    assert copy.lowest == watch.lowest == 1.0
    assert copy.exploded(9.0)


# Schedule, memory, checkpoints


def test_adalora_schedule_from_shares_and_steps():
    schedule = resolve_schedule(SimpleNamespace(tinit=0.1, tfinal=0.4), 200)
    assert (schedule.tinit, schedule.tfinal, schedule.total) == (20, 80, 200)
    with pytest.raises(ConfigError, match=r"tinit 8 and tfinal 4 leave none of the 10 steps"):
        resolve_schedule(SimpleNamespace(tinit=8, tfinal=4), 10)


def test_longest_batch_runs_forward_and_backward_and_leaves_nothing(tmp_path, model, data):
    run = make_run(tmp_path, model, data)
    before = {name: p.clone() for name, p in run.model.named_parameters() if p.requires_grad}
    found = longest_batch_step(run)
    assert found["rows"] == 4
    assert found["tokens"] == max(run.data.train["length"])
    assert 3 < found["loss"] < 6
    for name, parameter in run.model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is None
            assert torch.equal(parameter, before[name])


def test_pruning_keeps_the_newest_and_the_best(tmp_path):
    for step in (2, 4, 10, 6, 8):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    prune(tmp_path, 2, tmp_path / "checkpoint-4")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-4"]


def test_ranks_of_another_checkpoint_and_missing_rows_are_refused(tmp_path, model, data):
    other = {"name": "elsewhere", "fingerprint": "0" * 16}
    with pytest.raises(ConfigError, match="the ranks were measured on elsewhere"):
        make_run(tmp_path, model, data, lora={"ranks_base": other})
    with open_checkpoint(model) as checkpoint:
        mine = {"name": checkpoint.name, "fingerprint": checkpoint.fingerprint}
    make_run(tmp_path, model, data, lora={"ranks_base": mine})
    run = make_run(tmp_path, model, data)
    run.data.valid = None
    run.settings.train.eval_strategy = "steps"
    with pytest.raises(ConfigError, match="no rows to evaluate on"):
        build_run(run.inputs, None)


def test_out_takes_the_adapter_too(tmp_path, model, data):
    args = write_args(tmp_path / "args", model, data, {"final_model_path": "runs/first/final_adapter"})
    assert load_settings(args).final_adapter == Path("runs/first/final_adapter")
    out = settings_options(None, Path("runs/second"), None, None, None)
    assert load_settings(args, out).final_adapter == Path("runs/second/final_adapter")
    assert load_settings(args, [*out, "finetune.final_model_path=there"]).final_adapter == Path("there")


def test_fsdp_that_would_do_nothing_is_refused(tmp_path, model, data):
    # On CPUs accelerate would train without sharding and not say so.
    with pytest.raises(ConfigError, match="fsdp is given and would do nothing here"):
        make_run(tmp_path, model, data, train={"fsdp": "full_shard auto_wrap"})


def test_one_card_is_made_the_only_one(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert only_card("cuda:2") == "cuda"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert only_card("cuda:1") == "cuda"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "7"
    assert only_card("auto") == "auto"
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert only_card("cuda:1") == "cuda:1"
