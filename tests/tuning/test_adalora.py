"""AdaLoRA on the schedule of the paper: start ranks, budget, pruning, what is saved, what is refused."""

import copy

import numpy as np
import pytest
import torch
from peft import AdaLoraConfig, PeftModel
from peft.tuners.adalora import AdaLoraModel
from transformers import LlamaConfig, LlamaForCausalLM

from glmspectra.errors import ConfigError, TrainingError
from glmspectra.tuning.model.adalora import (
    MaskedRankAllocator,
    add_adalora,
    allocator_of,
)
from glmspectra.tuning.training import step_lines
from tests.tuning.tiny_run import ADALORA, make_run, write_data, write_model

START = {"model.layers.0.self_attn.q_proj": 3, "model.layers.1.self_attn.v_proj": 0}
TOKENS = torch.randint(0, 60, (4, 12), generator=torch.Generator().manual_seed(0))


def base_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=60,
    )  # fmt: skip
    return LlamaForCausalLM(config).requires_grad_(False)


def configuration(**changes) -> AdaLoraConfig:
    values = {
        "init_r": 6, "target_r": 2, "tinit": 2, "tfinal": 4, "deltaT": 1, "total_step": 12, "task_type": "CAUSAL_LM",
        "target_modules": ["q_proj", "v_proj"], "lora_alpha": 8,
    }  # fmt: skip
    return AdaLoraConfig(**(values | changes))


def train(model, steps: int, first: int = 1):
    """Steps of plain AdamW with the allocation in its place; the ranks after each step."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    history = []
    for step in range(first, first + steps):
        model(input_ids=TOKENS, labels=TOKENS).loss.backward()
        optimizer.step()
        allocator_of(model).allocate(step)
        optimizer.zero_grad()
        history.append(allocator_of(model).ranks())
    return history


def test_rank_sum_follows_the_cubic_schedule_to_the_budget():
    model = add_adalora(base_model(), configuration(), start_ranks=START)
    allocator = allocator_of(model)
    sums = [sum(ranks.values()) for ranks in train(model, 12)]
    start, target = 3 + 6 + 6 + 0, 4 * 2
    # Equation 8 of the paper, with t_i = 2, t_f = 4, T = 12.
    cubic = [int((start - target) * (1 - (step - 2) / (12 - 4 - 2)) ** 3 + target) for step in range(3, 9)]
    assert sums == [start, start, *cubic, *[target] * 4]
    assert allocator.ranks()["model.layers.1.self_attn.v_proj"] == 0
    assert allocator.ranks()["model.layers.0.self_attn.q_proj"] <= 3


def test_pruned_triplets_are_zero_and_stay_out():
    model = add_adalora(base_model(), configuration(), start_ranks=START)
    train(model, 12)
    allocator = allocator_of(model)
    for name in allocator.layers:
        values = allocator.triplets(name)[1].view(-1)
        assert torch.equal(values != 0, allocator.kept[name]), name
        a, e, b = (factor.detach() for factor in allocator.triplets(name))
        layer = allocator.layers[name]
        kept = allocator.kept[name]
        expected = b[:, kept] @ (a * e)[kept] * layer.scaling["default"] / (6 + 1e-5)
        assert torch.allclose(layer.get_delta_weight("default"), expected, atol=1e-9)


def test_triplets_beyond_a_start_rank_never_grow():
    model = add_adalora(base_model(), configuration(tinit=6, total_step=20), start_ranks=START)
    train(model, 5)
    allocator = allocator_of(model)
    assert torch.count_nonzero(allocator.triplets("model.layers.0.self_attn.q_proj")[1]) == 3
    assert torch.count_nonzero(allocator.triplets("model.layers.1.self_attn.v_proj")[1]) == 0
    assert torch.count_nonzero(allocator.triplets("model.layers.0.self_attn.v_proj")[1]) == 6


@pytest.mark.parametrize("steps", [5, 7, 12])  # mid-schedule, between two allocations, and at the end
def test_saved_adapter_gives_equal_logits_in_plain_peft(tmp_path, steps):
    model = add_adalora(base_model(), configuration(deltaT=2), "LoraAdapter", START)
    untouched = copy.deepcopy(base_model())
    train(model, steps)
    model.eval()
    allocator_of(model).describe_for_saving()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(untouched, tmp_path / "LoraAdapter").eval()
    assert type(loaded.base_model) is AdaLoraModel
    with torch.no_grad():
        difference = (loaded(input_ids=TOKENS).logits - model(input_ids=TOKENS).logits).abs().max()
        changed = (model(input_ids=TOKENS).logits - base_model()(input_ids=TOKENS).logits).abs().max()
    assert difference < 2e-6
    assert changed > 1e-3


def test_the_orthogonality_term_is_that_of_equation_4_over_the_triplets_a_matrix_may_have():
    model = add_adalora(base_model(), configuration(orth_reg_weight=0.5), start_ranks=START)
    allocator = allocator_of(model)
    terms = []
    for name, rank in START.items() | {(name, 6) for name in allocator.layers if name not in START}:
        a, _, b = (factor.detach().double().numpy() for factor in allocator.triplets(name))
        terms += [
            np.linalg.norm(a[:rank] @ a[:rank].T - np.eye(rank)),
            np.linalg.norm(b[:, :rank].T @ b[:, :rank] - np.eye(rank)),
        ]
    assert min(terms[:2]) >= 0
    assert float(allocator.orthogonality().detach()) == pytest.approx(np.mean(terms), rel=1e-5)
    assert np.mean(terms) > 0.1  # factors start small, so the term is not zero by itself


def test_the_trainers_loss_is_plain_in_evaluation_and_regularized_in_training(tmp_path):
    folder, data = write_model(tmp_path / "model"), write_data(tmp_path / "data")
    lora = ADALORA | {"orth_reg_weight": 0.5, "lora_dropout": 0.0}
    run = make_run(tmp_path, folder, data, {"method": "adalora"}, lora)
    trainer, allocator = run.trainer, allocator_of(run.model)
    batch = trainer.data_collator([run.data.train[row] for row in range(4)])
    trainer.current_gradient_accumulation_steps = 1
    with torch.no_grad():
        logits = run.model.eval()(input_ids=batch["input_ids"]).logits[:, :-1].flatten(0, 1)
        plain = torch.nn.functional.cross_entropy(logits, batch["labels"][:, 1:].flatten())
        assert torch.allclose(trainer.compute_loss(run.model, batch), plain, atol=1e-6)
        trained = trainer.compute_loss(run.model.train(), batch)
    assert torch.allclose(trained - plain, 0.5 * allocator.orthogonality(), atol=1e-6)


def test_importance_is_that_of_the_paper():
    # One update from zero averages: sensitivity (1 - b1) I and uncertainty (1 - b2) |I - sensitivity|; their
    # product is an entry's score, and a triplet's is that of E plus the means over its row of A and column of
    # B.
    model = add_adalora(base_model(), configuration(tinit=5, total_step=20), start_ranks=START)
    model(input_ids=TOKENS, labels=TOKENS).loss.backward()
    allocator = allocator_of(model)
    name = "model.layers.0.self_attn.v_proj"
    with torch.no_grad():
        allocator.triplets(name)[1].fill_(0.5)
    expected = []
    for factor in allocator.triplets(name):
        importance = (factor * factor.grad).abs().detach()
        smooth = 0.15 * importance
        expected.append(smooth * (0.15 * (importance - smooth).abs()))
    allocator.allocate(1)
    a, e, b = expected
    assert torch.allclose(allocator.scores()[name], e.view(-1) + a.mean(1) + b.mean(0), rtol=1e-5, atol=0)
    assert (allocator.scores()[name] > 0).all()


def test_an_allocation_that_does_not_prune_stops(monkeypatch):
    model = add_adalora(base_model(), configuration())
    monkeypatch.setattr(MaskedRankAllocator, "_zero_outside", lambda self, masks: None)
    with pytest.raises(TrainingError, match=r"should have pruned to 17 triplets at step 3 and did not"):
        train(model, 12)


def test_allocation_without_gradients_stops():
    model = add_adalora(base_model(), configuration())
    with pytest.raises(TrainingError, match="without a gradient"):
        allocator_of(model).allocate(1)


def test_a_step_whose_gradients_overflowed_changes_no_importance():
    model = add_adalora(base_model(), configuration(tinit=5, total_step=20))
    train(model, 1)
    allocator = allocator_of(model)
    before = {name: value.clone() for name, value in allocator.exp_avg_ipt.items()}
    model(input_ids=TOKENS, labels=TOKENS).loss.backward()
    allocator.triplets("model.layers.0.self_attn.v_proj")[0].grad[0, 0] = torch.inf
    allocator_of(model).allocate(2)
    assert all(torch.equal(allocator.exp_avg_ipt[name], value) for name, value in before.items())


@pytest.mark.parametrize(
    ("start", "changes", "message"),
    [
        ({"model.layers.9.q_proj": 2}, {}, "which AdaLoRA does not adapt"),
        ({"model.layers.0.self_attn.q_proj": 7}, {}, "init_r must be the largest start rank, and is 6"),
        ({f"model.layers.{i}.self_attn.{p}_proj": 1 for i in (0, 1) for p in "qv"}, {}, "give only 4"),
    ],
)
def test_start_ranks_that_cannot_be_are_refused(start, changes, message):
    with pytest.raises(ConfigError, match=message):
        add_adalora(base_model(), configuration(**changes), start_ranks=start)


def test_state_of_another_schedule_is_refused(tmp_path):
    model = add_adalora(base_model(), configuration())
    state = allocator_of(model).state_dict()
    other = add_adalora(base_model(), configuration(total_step=13))
    with pytest.raises(TrainingError, match="other target modules, start ranks or number of steps"):
        allocator_of(other).load_state_dict(state, tmp_path)
    same = add_adalora(base_model(), configuration())
    allocator_of(same).load_state_dict(state, tmp_path)


def test_history_is_cut_where_a_run_goes_on(tmp_path):
    path = tmp_path / "rank_history.jsonl"
    for step in (0, 3, 6):
        step_lines.append(path, step, {"ranks": {"a": 6 - step // 3}})
    with path.open("a") as file:
        file.write('{"step": 9, "ra')  # killed while writing
    step_lines.cut(path, 3)
    assert path.read_text() == '{"step": 0, "ranks": {"a": 6}}\n{"step": 3, "ranks": {"a": 5}}\n'
