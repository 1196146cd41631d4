"""Second moments from optimizer.pt, and delta-W in the metric of AdamW: dense float64, and what PEFT trained."""

import numpy as np
import pytest
import torch

from glmspectra.checkpoint.adapter.adapter import open_adapter
from glmspectra.checkpoint.adapter.moments import optimizer_file, read_moments
from glmspectra.errors import CheckpointError
from glmspectra.ranks.budget import parse_budget
from glmspectra.ranks.evidence import gather
from glmspectra.ranks.suggest import allocate
from glmspectra.sweep.delta import measure_change
from glmspectra.sweep.delta_moments import registered_order
from glmspectra.sweep.delta_plan import DeltaOptions

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

TARGETS = ["q_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]
ALPHA, RANK = 12, 4


def model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.LlamaConfig(vocab_size=64, num_key_value_heads=2, **sizes)
    return transformers.LlamaForCausalLM(config)


def trained(tmp_path, optimizer_of=None, named=False, steps=3, **config):
    """A base and a run's folder with checkpoint-N as transformers' Trainer leaves it; and the model that was trained.

    optimizer_of: parameters -> optimizer. named: the state holds torch's param_names.
    """
    base = tmp_path / "base"
    model().save_pretrained(base)
    settings = {"r": RANK, "lora_alpha": ALPHA, "target_modules": TARGETS, "init_lora_weights": True, **config}
    tuned = peft.get_peft_model(model(), peft.LoraConfig(**settings))
    torch.manual_seed(1)
    parameters = [(name, p) for name, p in tuned.named_parameters() if p.requires_grad]
    make = optimizer_of or (lambda given: torch.optim.AdamW(given, lr=1e-2))
    optimizer = make(parameters if named else [p for _, p in parameters])
    for _ in range(steps):
        ids = torch.randint(1, 64, (4, 12))
        tuned(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    folder = tmp_path / "run" / f"checkpoint-{steps}"
    tuned.save_pretrained(folder)
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    return base, tmp_path / "run", tuned, optimizer


def of_layer(tuned, optimizer):
    """module -> (delta-W, E[g_A^2], E[g_B^2], A, scale), float64, from the live model."""
    found = {}
    for name, layer in tuned.named_modules():
        if "default" in getattr(layer, "lora_A", {}):
            parts = [layer.lora_A["default"].weight, layer.lora_B["default"].weight]
            squares = []
            for part in parts:
                state, group = optimizer.state[part], optimizer.param_groups[0]
                squares.append(state["exp_avg_sq"].double() / (1 - group["betas"][1] ** float(state["step"])))
            module = name.removeprefix("base_model.model.")
            delta = layer.get_delta_weight("default").detach().double()
            found[module] = (delta, *squares, parts[0].detach().double(), layer.scaling["default"])
    return found


def dense(delta, of_a, of_b, a, scale, power):
    """Singular values of diag(rows^p) D diag(columns^p), the matrix made whole."""
    rows = of_b.mean(1) / (a.square().sum() / a.shape[0]) / scale**2
    columns = of_a.mean(0) / of_a.mean()
    return torch.linalg.svdvals(torch.diag(rows**power) @ delta @ torch.diag(columns**power)).numpy(), float(
        rows.mean()
    )


def spectra(run, quantity, step):
    frame = run.singular_values
    frame = frame[(frame["quantity"] == quantity) & (frame["step"] == step)]
    return {n: g.sort_values("index")["sigma"].to_numpy() for n, g in frame.groupby("name")}


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("rslora", [True, False])
def test_delta_of_a_training_holds_the_dense_spectrum_in_adamws_metric(tmp_path, named, rslora):
    base, run_folder, tuned, optimizer = trained(tmp_path, named=named, use_rslora=rslora)
    run, result = measure_change(base, run_folder, tmp_path / "tables", DeltaOptions(device="cpu", quiet=True))
    assert not [note for note in result.notes if "metric" in note]
    truth = of_layer(tuned, optimizer)
    levels = run.matrices[run.matrices["quantity"] == "delta_tempered"].set_index("name")["second_moment"]
    assert len(levels) == len(truth) == 10
    for quantity, power in (("delta_adamw", 0.25), ("delta_tempered", 0.125)):
        for name, sigma in spectra(run, quantity, 3).items():
            expected, level = dense(*truth[name.removesuffix(".weight")], power)
            np.testing.assert_allclose(sigma, expected[:RANK], rtol=1e-5, atol=1e-6 * expected[0])
            assert levels[name] == pytest.approx(level, rel=1e-6)


def test_a_planted_second_moment_is_found_again(tmp_path):
    """G_ij of variance r_i c_j: the rows' means and the columns' shape come back from A's and B's squares."""
    _, run_folder, _, _ = trained(tmp_path)
    adapter = open_adapter(run_folder / "checkpoint-3")
    file = optimizer_file(adapter.path)
    content = torch.load(file, weights_only=True)
    chance = torch.Generator().manual_seed(3)
    name = registered_order(adapter.names, _opened(tmp_path / "base"))[0]
    own = adapter.own_factors(name)
    rows = torch.rand(own.shape[0], generator=chance).double() + 0.1
    columns = torch.rand(own.shape[1], generator=chance).double() + 0.1
    variance = rows[:, None] * columns[None, :]
    a, b = own.right.double(), torch.randn(own.left.shape, generator=chance).double()
    of_a = own.scale**2 * (b.square().T @ variance)
    of_b = own.scale**2 * (variance @ a.square().T)
    for number, square in ((0, of_a), (1, of_b)):
        content["state"][number] |= {"exp_avg_sq": (square * (1 - 0.999**3)).float()}
    torch.save(content, file)
    found = read_moments(adapter, file, registered_order(adapter.names, _opened(tmp_path / "base")))[name]
    np.testing.assert_allclose(found.columns, columns / columns.mean(), rtol=1e-5)
    # A is random: its squares weigh the columns unevenly, so the rows' level is met to sampling, their shape exactly.
    np.testing.assert_allclose(found.rows / found.rows.mean(), rows / rows.mean(), rtol=1e-5)
    assert found.level == pytest.approx(float(variance.mean()), rel=0.2)


def _opened(base):
    from glmspectra.checkpoint import open_checkpoint

    return open_checkpoint(base)


def test_suggest_rank_takes_the_metric_from_the_tables_alone(tmp_path):
    base, run_folder, tuned, optimizer = trained(tmp_path, named=True)
    run, _ = measure_change(base, run_folder, tmp_path / "tables", DeltaOptions(device="cpu", quiet=True))
    evidence = gather(None, [run])
    budget = parse_budget("like:r=2", evidence)
    truth = {name: dense(*parts, 0.25)[0] for name, parts in of_layer(tuned, optimizer).items()}
    found = allocate(evidence, "delta-adamw", budget).ranks
    sizes = [(truth[t.module][i], t) for t in evidence.targets for i in range(RANK)]
    left, expected, closed = budget.parameters, dict.fromkeys(found, 0), set()
    for _, target in sorted(sizes, key=lambda pair: -pair[0]):
        if target.name not in closed and target.cost <= left:
            expected[target.name] += 1
            left -= target.cost
        else:
            closed.add(target.name)
    assert found == expected
    assert len(set(found.values())) > 1


def test_a_few_huge_gradients_are_clipped_in_the_tempered_metric(tmp_path):
    base, run_folder, tuned, optimizer = trained(tmp_path, named=True)
    run, _ = measure_change(base, run_folder, tmp_path / "tables", DeltaOptions(device="cpu", quiet=True))
    evidence = gather(None, [run])
    found = {name: dense(*parts, 0.125) for name, parts in of_layer(tuned, optimizer).items()}
    levels = np.array([level for _, level in found.values()])
    low, high = np.quantile(levels, [0.1, 0.9])
    for name, (sigma, level) in found.items():
        clipped = sigma[:RANK] * (np.clip(level, low, high) / level) ** 0.125
        np.testing.assert_allclose(evidence.sigma["delta_tempered"][f"{name}.weight"], clipped, rtol=1e-5, atol=1e-9)
    assert ((levels < low) | (levels > high)).sum() == 2


def adafactor(given):
    return transformers.Adafactor(given, lr=1e-2, relative_step=False, scale_parameter=False)


OTHERS = {
    "Adafactor": adafactor,
    "SGD or Muon": lambda given: torch.optim.SGD(given, lr=1e-2, momentum=0.9),
    "RMSprop": lambda given: torch.optim.RMSprop(given, lr=1e-2),
    "Adagrad": lambda given: torch.optim.Adagrad(given, lr=1e-2),
}


@pytest.mark.parametrize("who", OTHERS)
def test_another_optimizer_is_refused_by_its_name_and_the_change_is_measured(tmp_path, who):
    base, run_folder, _, _ = trained(tmp_path, OTHERS[who])
    run, result = measure_change(base, run_folder, tmp_path / "tables", DeltaOptions(device="cpu", quiet=True))
    (note,) = [note for note in result.notes if "metric" in note]
    assert who in note
    assert set(run.matrices["quantity"]) == {"delta"}


def test_bitsandbytes_8_bit_state_is_refused_by_its_name(tmp_path):
    bnb = pytest.importorskip("bitsandbytes")
    _, run_folder, _, _ = trained(tmp_path)
    folder = run_folder / "checkpoint-3"
    content = torch.load(folder / "optimizer.pt", weights_only=True)
    weight = torch.nn.Parameter(torch.randn(128, 64))
    optimizer = bnb.optim.PagedAdamW8bit([weight], lr=1e-3)
    state = optimizer.state[weight]
    optimizer.init_state(optimizer.param_groups[0], weight, 0, 0)
    content["state"] = {number: dict(state) for number in content["state"]}
    torch.save(content, folder / "optimizer.pt")
    with pytest.raises(CheckpointError, match="8-bit optimizer of bitsandbytes"):
        read_moments(open_adapter(folder), folder / "optimizer.pt", [])


def drop_a_parameter(content):
    content["param_groups"][0]["params"].pop()


def turn_a_factor(content):
    content["state"][0]["exp_avg_sq"] = content["state"][0]["exp_avg_sq"].T.contiguous()


def nan_inside(content):
    content["state"][5]["exp_avg_sq"][0, 0] = float("nan")


def before_a_step(content):
    content["state"].clear()


def rename(content):
    content["param_groups"][0]["param_names"][3] = "base_model.model.model.layers.0.lora_A.weight"


FAULTS = {
    drop_a_parameter: "state of 19 parameters, and the adapter .* has 20",
    turn_a_factor: r"second moment of lora_A of .* is \(32, 4\), where the adapter has \(4, 32\)",
    nan_inside: "is no mean of squares",
    before_a_step: "has no state; was it saved before the first step",
    rename: "names the parameter",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_state_that_does_not_fit_is_refused(tmp_path, fault):
    _, run_folder, _, _ = trained(tmp_path, named=True)
    file = run_folder / "checkpoint-3" / "optimizer.pt"
    content = torch.load(file, weights_only=True)
    fault(content)
    if fault is drop_a_parameter:
        content["param_groups"][0]["param_names"].pop()
    torch.save(content, file)
    with pytest.raises(CheckpointError, match=FAULTS[fault]):
        read_moments(open_adapter(file.parent), file)


class Harmful:
    def __reduce__(self):
        return print, ("run",)


def test_nothing_in_the_file_is_run(tmp_path, capsys):
    _, run_folder, _, _ = trained(tmp_path)
    file = run_folder / "checkpoint-3" / "optimizer.pt"
    torch.save({"state": {0: Harmful()}, "param_groups": []}, file)
    with pytest.raises(CheckpointError, match="more than tensors"):
        read_moments(open_adapter(file.parent), file)
    assert "run" not in capsys.readouterr().out


def test_without_names_and_base_the_order_is_said_to_be_unknown(tmp_path):
    _, run_folder, _, _ = trained(tmp_path)
    _, result = measure_change(None, run_folder, tmp_path / "tables", DeltaOptions(device="cpu", quiet=True))
    (note,) = [note for note in result.notes if "metric" in note]
    assert "name the base model too" in note


def test_dora_is_left_out_by_name(tmp_path):
    base, run_folder, _, _ = trained(tmp_path, use_dora=True)
    _, result = measure_change(base, run_folder, tmp_path / "tables", DeltaOptions(device="cpu", quiet=True))
    (note,) = [note for note in result.notes if "metric" in note]
    assert "plain LoRA alone" in note
    assert "dora" in note
