"""Arms of the study: every one stays within its budget and reads its facts rightly; moving ranks move as their papers
say."""

import json
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from rank_study.arms import ARMS
from rank_study.bases import Base, fuse_norms, layer_linears
from rank_study.cutting import thin_svd
from rank_study.facts import (
    PILOT,
    PILOT_SEEDS,
    PILOTS,
    Facts,
    Inputs,
    LossChange,
    Pilot,
    delta_metrics,
    gradient_levels,
    pilot_seeds_of,
    run_pilots,
    targets_of,
    train_jobs,
)
from rank_study.many_adapters import ManyAdapters, ManyLoraLinear
from rank_study.moving_ranks import AdaLora, Reshared
from rank_study.plan import CONFIRM_SEEDS, CURVE_SEEDS, RATE_SEEDS, SCREEN_SEEDS, Job
from rank_study.tasks import encode
from rank_study.workers import run_group

from tests.benchmarks.test_rank_study import tiny_llama


@pytest.fixture(scope="module")
def base():
    model = tiny_llama()
    return Base(
        "smollm2", model, lambda text: [ord(c) % 60 + 3 for c in text], [1], 2, layer_linears(model), 20, "tiny"
    )


@pytest.fixture(scope="module")
def rows(base):
    generator = np.random.default_rng(0)
    words = ["".join(generator.choice(list("abcdef"), size=int(n))) for n in generator.integers(2, 9, size=48)]
    part = encode([(word, word[::-1]) for word in words], base.tokens, base.prefix, base.eos, base.length)
    return {"train": part, "development": part, "test": part}


class ShortFacts(Facts):
    """With pilots of a tenth of the steps."""

    def pilots(self, seed, steps=PILOT):
        return super().pilots(seed, max(steps // 10, 3))


def facts_in(folder, base, rows, own_pilots=()):
    return Facts(base, rows["train"], "medical", folder, 1e-2, 8, 2, own_pilots)


@pytest.fixture(scope="module")
def facts(base, rows, tmp_path_factory):
    return ShortFacts(base, rows["train"], "medical", tmp_path_factory.mktemp("pilots"), 1e-2, 8, 2)


def test_every_arm_ends_within_its_budget_and_close_to_it(base, rows, facts, monkeypatch):
    monkeypatch.setattr("rank_study.facts.SECOND_ORDER_ROWS", 8)
    arms = list(ARMS)
    jobs = [Job("smollm2", "medical", arm, 2, 5, 1e-2, "development") for arm in arms]

    lines = {line["arm"]: line for line in map(json.loads, run_group(base, rows, facts, jobs, 24, 2).splitlines())}
    budget = 2 * sum(target.cost for target in facts.targets)
    largest = max(target.cost for target in facts.targets)
    for arm, line in lines.items():
        assert budget - 2 * largest < line["parameters"] <= budget, arm
        assert np.isfinite(line["loss"]), arm
    assert lines["delta-threshold"]["largest_rank"] > lines["uniform"]["largest_rank"] == 2


def uniform_run(base, rows, rank, steps, mover):
    ranks_ = [dict.fromkeys(base.modules, rank)] * 2
    adapters = train_jobs(base, rows["train"], ranks_, [1e-2, 1e-2], [1, 2], steps, 2, watchers=[mover])
    found = [(name, up, down, adapters.kept(name)) for name, up, down in adapters.factors()]
    adapters.remove()
    return found


def test_adalora_falls_to_its_budget_and_leaves_other_jobs_alone(base, rows):
    targets = targets_of(base.shapes())
    cost = sum(target.cost for target in targets)
    mover = AdaLora(targets, [1], [2 * cost], 20)
    seen = []
    move = mover.move

    def spy(adapters, grad, step):
        move(adapters, grad, step)
        costs = {t.module: t.cost for t in targets}
        seen.append(sum(int(adapters.kept(name)[1].sum()) * costs[name] for name in adapters.layers))

    mover.move = spy
    found = uniform_run(base, rows, 3, 20, mover)
    assert seen[0] == 3 * cost, "nothing is dropped before the schedule begins"
    assert all(later <= earlier for earlier, later in pairwise(seen))
    assert 2 * cost - max(t.cost for t in targets) < seen[-1] <= 2 * cost
    assert len({int(kept[1].sum()) for *_, kept in found}) > 1, "importance differs between layers"
    assert all(kept[0].tolist() == [True] * 3 + [False] * 5 for *_, kept in found)


def test_adalora_keeps_what_matters(base):
    """A direction without gradient has no importance, whatever its size."""

    targets = targets_of(base.shapes())
    adapters = ManyAdapters(base.model, base.modules, [dict.fromkeys(base.modules, 2)], [1e-2], [0])
    adapters.master.fill_(1.0)
    grad = torch.zeros_like(adapters.master)
    for number, name in enumerate(adapters.layers):
        down, up = adapters.of(grad, name)
        down[0, number % 2] = up[0, :, number % 2] = 1.0
    mover = AdaLora(targets, [0], [sum(target.cost for target in targets)], 10)
    for step in range(6):
        mover.move(adapters, grad, step)
    for number, name in enumerate(adapters.layers):
        assert adapters.kept(name)[0].tolist() == [number % 2 == 0, number % 2 == 1, *[False] * 6], name
    adapters.remove()


def test_resharing_keeps_delta_w_where_the_budget_holds_it(base, rows):
    targets = targets_of(base.shapes())
    cost = sum(target.cost for target in targets)
    before, after = {}, {}

    class Spy(Reshared):
        def move(self, adapters, grad, step):
            if step == round(self.at * self.steps):
                before.update((name, (up @ down).clone()) for name, up, down in adapters.factors())
                super().move(adapters, grad, step)
                after.update((name, (up @ down).clone()) for name, up, down in adapters.factors())
                assert adapters.steps[:, 0].tolist() == [step, 0], "only its own job begins its moments anew"

    uniform_run(base, rows, 3, 9, Spy(targets, [1], [3 * cost], 9))
    for name, whole in before.items():
        torch.testing.assert_close(after[name], whole, atol=1e-6, rtol=1e-4)
    uniform_run(base, rows, 3, 9, Spy(targets, [1], [cost], 9))
    dropped = [float((before[n][1] - after[n][1]).norm()) for n in before]
    assert max(dropped) > 0
    for number, name in enumerate(before):
        sigma = torch.linalg.svdvals(before[name][1].double())
        kept = int(torch.linalg.matrix_rank(after[name][1].double(), rtol=1e-4))
        assert dropped[number] == pytest.approx(float(sigma[kept:3].norm()), rel=1e-3, abs=1e-7), "the smallest part"


def test_thin_svd_is_the_products():
    generator = torch.Generator().manual_seed(0)
    up = torch.randn(2, 9, 3, generator=generator).double()
    down = torch.randn(2, 3, 7, generator=generator).double()
    left, sigma, right = thin_svd(up, down)
    torch.testing.assert_close(left * sigma[:, None, :] @ right, up @ down)
    torch.testing.assert_close(sigma, torch.linalg.svdvals(up @ down)[:, :3])


def test_the_metrics_find_the_factors_of_a_separable_second_moment():
    """G_ij = sqrt(r_i c_j) e_ij: the moments of dB = G A^T and dA = B^T G over many draws give r and c back."""
    generator = torch.Generator().manual_seed(0)
    r, c = torch.rand(6, generator=generator) + 0.2, torch.rand(8, generator=generator) + 0.2
    b, a = torch.randn(6, 4, generator=generator), torch.randn(4, 8, generator=generator)
    noise = torch.randn(40000, 6, 8, generator=generator)
    gradients = (r[:, None] * c[None, :]).sqrt() * noise
    second_b = (gradients @ a.T).square().mean(0)
    second_a = (b.T @ gradients).square().mean(0)
    metrics = delta_metrics(second_a[None], second_b[None], a[None], torch.ones(1))
    for metric, power in (("preconditioned", 4), ("fisher", 2)):
        (rows_,), (columns,) = metrics[metric]
        torch.testing.assert_close(columns**power / (columns**power).mean(), c / c.mean(), rtol=0.05, atol=0)
        torch.testing.assert_close(rows_**power / (rows_**power).mean(), r / r.mean(), rtol=0.05, atol=0)
    assert all((weights == 1).all() for weights in metrics["plain"])
    # Their product is V itself, so that layers can be compared: exactly so where all of A^2 is alike.
    signs = a.sign()
    second_b = (gradients @ (0.3 * signs).T).square().mean(0)
    metrics = delta_metrics(second_a[None], second_b[None], 0.3 * signs[None], torch.full((1,), 5.0))
    (rows_,), (columns,) = metrics["fisher"]
    torch.testing.assert_close((rows_[:, None] * columns) ** 2, r[:, None] * c, rtol=0.1, atol=0)
    (rows_,), (columns,) = metrics["tempered"]  # V^(1/8) on either side, with the level given in place of V's mean
    torch.testing.assert_close(rows_**8, 5.0 * r / r.mean(), rtol=0.1, atol=0)


def test_pilots_are_measured_on_the_weighted_delta_w_itself(base, rows):
    """Against dense singular values of diag(rows) delta-W diag(columns); a seed among others is the seed alone."""
    found = run_pilots(base, rows["train"], 8, 1e-2, 5, 2, [7, 8])
    adapters = train_jobs(base, rows["train"], [dict.fromkeys(base.modules, 8)], [1e-2], [8], 5, 2)
    adapters.remove()
    levels = gradient_levels(adapters)
    for name, up, down in adapters.factors():
        metrics = delta_metrics(*adapters.of(adapters.second.double(), name), down.double(), levels[name])
        for metric, (high, low) in metrics.items():
            dense = torch.linalg.svdvals(high[0, :, None] * (up[0].double() @ down[0].double()) * low[0])
            sigma = getattr(found[1], metric)[name]
            assert sigma == pytest.approx(dense[:8].numpy(), rel=1e-3, abs=1e-4 * float(dense[0])), (name, metric)


def few(rows, count):
    return type(rows)(rows.input_ids[:count], rows.attention_mask[:count], rows.labels[:count])


def test_loss_change_adds_up_to_what_the_loss_fell(base, rows):
    """On the same rows in every step; jobs: all layers, one layer, all but that one."""
    own = base.modules[3]
    ranks = [dict.fromkeys(base.modules, 2), {own: 3}, {name: 2 for name in base.modules if name != own}]
    change, losses = LossChange(), []

    def measure(adapters, grad):
        total, count = adapters.losses(few(rows["train"], 4).take(torch.arange(4).repeat(3), "cpu"))
        losses.append(total / count)

    adapters = train_jobs(base, few(rows["train"], 4), ranks, [1e-3] * 3, [1, 2, 3], 40, 4, watchers=[measure, change])
    adapters.remove()
    fell = losses[0] - losses[-1]
    assert (fell > 0.01).all()
    torch.testing.assert_close(change.total.sum(1), fell, rtol=0.05, atol=0)
    parts = {name: change.of_layer(adapters, name) for name in adapters.layers}
    assert list(parts) == base.modules
    torch.testing.assert_close(sum(parts.values()), change.total.sum(1))
    assert all(part[1] == 0 for name, part in parts.items() if name != own), "a layer without adapter has no part"
    assert parts[own][2] == 0
    torch.testing.assert_close(parts[own][1], fell[1], rtol=0.05, atol=0)
    assert sum(part[0] > 0 for part in parts.values()) > len(parts) / 2


def test_loss_change_takes_the_gradient_after_each_change():
    change = LossChange()
    adapters = SimpleNamespace(master=torch.tensor([[1.0, 2.0]]))
    change(adapters, torch.tensor([[100.0, 100.0]]))
    adapters.master += torch.tensor([[0.5, -1.0]])
    change(adapters, torch.tensor([[2.0, 3.0]]))
    adapters.master += torch.tensor([[0.25, 0.0]])
    change(adapters, torch.tensor([[-4.0, 7.0]]))
    assert change.total.tolist() == [[-2 * 0.5 + 4 * 0.25, 3.0]]


def test_seeds_of_confirming_have_pilots_of_their_own(base, rows, tmp_path, monkeypatch):
    own = facts_in(tmp_path, base, rows, own_pilots=range(201, 207))
    monkeypatch.setattr("rank_study.facts.SECOND_ORDER_ROWS", 4)
    found = {seed: own.pilots(seed, 4) for seed in (202, 204, 206, 5, 6)}
    files = {file.stem.rpartition("-")[0] for file in tmp_path.glob("*.json")}
    of = ("", "-of-200", "-of-205")
    assert files == {f"pilots-smollm2-medical-4{block}" for block in of}, "a block of five seeds is one file"
    assert own.pilots(202, 3), "and so is every length"
    assert len(list(tmp_path.glob("*.json"))) == 4
    assert replace(own, rate=5e-3).pilots(202, 3)
    assert len(list(tmp_path.glob("*.json"))) == 5, "pilots at another rate never stand in for these"
    name = base.modules[0]
    sizes = {seed: [tuple(pilot.plain[name]) for pilot in pilots] for seed, pilots in found.items()}
    assert sizes[5] == sizes[6], "others share theirs"
    apart = [one for seed in (202, 204, 206, 5) for one in sizes[seed]]
    assert len(set(apart)) == len(apart) == 4 * PILOTS
    for seed, seeds in ((202, pilot_seeds_of(202)), (206, pilot_seeds_of(206)), (5, PILOT_SEEDS)):
        expected = run_pilots(base, rows["train"], 8, 1e-2, 4, 2, seeds)
        for pilot, one in zip(found[seed], expected, strict=True):
            for module in base.modules:
                for metric in ("plain", "preconditioned", "fisher"):
                    sigma, other = getattr(pilot, metric)[module], getattr(one, metric)[module]
                    assert sigma == pytest.approx(other, rel=1e-3, abs=1e-3 * other[0]), (seed, metric)
                assert float(pilot.loss_change[module]) == pytest.approx(one.loss_change[module], rel=1e-3, abs=1e-6)

    def measured_again(*_):
        raise AssertionError

    monkeypatch.setattr("rank_study.facts.run_pilots", measured_again)
    again = facts_in(tmp_path, base, rows, own_pilots=range(201, 207)).pilots(204, 4)
    assert [tuple(pilot.plain[name]) for pilot in again] == sizes[204]


def test_no_two_seeds_share_a_pilot_or_a_run():
    confirming = set().union(*CONFIRM_SEEDS.values())
    others = set(SCREEN_SEEDS).union(*RATE_SEEDS.values(), *CURVE_SEEDS.values(), PILOT_SEEDS)
    pilots = [one for seed in confirming for one in pilot_seeds_of(seed)]
    assert len(set(pilots)) == len(pilots) == PILOTS * len(confirming)
    assert not set(pilots) & (confirming | others)
    assert not set(PILOT_SEEDS) & (confirming | set(SCREEN_SEEDS))


def test_eva_gives_no_layer_more_than_pefts_rho_allows(facts, base):
    budget = 2 * sum(target.cost for target in facts.targets)
    loud = base.modules[5]
    variance = {name: np.full(6, 0.9 if name == loud else 0.1) for name in base.modules}
    own = replace(facts)
    own.__dict__["inputs"] = Inputs(variance, {})
    found = ARMS["eva"](own, budget, 0)
    assert found[loud] == max(found.values()) == 4


def test_variances_of_the_inputs_are_those_of_the_tokens(facts, base):
    """Against a dense SVD of one layer's inputs, gathered by hand from rows without their padding."""
    name = base.modules[-1]
    inputs = []
    handle = base.model.get_submodule(name).register_forward_pre_hook(lambda _, given: inputs.append(given[0][0]))
    for row in range(128):
        length = int(facts.rows.attention_mask[row % 48].sum())
        with torch.no_grad():
            base.model(input_ids=facts.rows.input_ids[row % 48, :length][None])
    handle.remove()
    _, sigma, right = torch.linalg.svd(torch.cat(inputs).double(), full_matrices=False)
    share = sigma**2 / (sigma**2).sum()
    assert facts.inputs.variance[name] == pytest.approx(share[:8].numpy(), rel=1e-4)
    directions = facts.inputs.directions[name].double()
    torch.testing.assert_close((directions @ right[:8].T).diagonal().abs(), torch.ones(8).double(), atol=1e-3, rtol=0)


class Told(Facts):
    """Facts whose pilots are given."""

    def pilots(self, seed, steps=80):
        return self.given


def results(facts, parts, sizes):
    found = Told(facts.base, facts.rows, facts.task, facts.folder, 1e-2, 8, 2)
    found.given = [Pilot(sizes, sizes, sizes, sizes, one) for one in parts]
    return found


def test_loss_change_gives_more_to_layers_that_lowered_the_loss_more(facts, base):
    alike = [target.module for target in facts.targets if target.matrix in ("q_proj", "o_proj")]
    budget = 3 * sum(target.cost for target in facts.targets)
    sizes = {name: 0.7 ** np.arange(16.0) for name in base.modules}
    parts = dict.fromkeys(base.modules, 0.01) | dict(zip(alike, (-0.2, 0.02, 0.1, 0.5), strict=True))
    # The mean over pilots counts: one pilot's negative part makes no layer worthless.
    pilots = [parts | {alike[1]: -0.02}, parts | {alike[1]: 0.06}, parts]
    found = ARMS["delta-loss-change"](results(facts, pilots, sizes), budget, 5)
    ranks_ = [found[name] for name in alike]
    assert ranks_[0] == 0
    assert 0 < ranks_[1] < ranks_[2] < ranks_[3]
    assert sum(found[t.module] * t.cost for t in facts.targets) <= budget
    louder = sizes | {alike[1]: 100 * sizes[alike[1]]}
    assert ARMS["delta-loss-change"](results(facts, pilots, louder), budget, 5) == found, (
        "only the shape of delta-W counts"
    )
    assert ARMS["delta-threshold"](results(facts, pilots, louder), budget, 5)[alike[1]] > ranks_[1]


@pytest.mark.parametrize(
    ("arm", "other"), [("delta-and-type", "type-alone"), ("delta-and-effective-rank", "effective-rank")]
)
def test_a_mixture_lies_between_its_parents(facts, arm, other):
    differ = 0
    for budget in (2, 3, 5):
        whole = budget * sum(target.cost for target in facts.targets)
        one, two, mean = (ARMS[name](facts, whole, 5) for name in ("delta-threshold", other, arm))
        differ += sum(one[name] != two[name] for name in mean)
        for name, rank in mean.items():
            assert abs(rank - (one[name] + two[name]) / 2) < 1, name
            assert min(one[name], two[name]) <= rank <= max(one[name], two[name]), name
    assert differ > 10, "the parents are not alike, so that there is something to lie between"


def test_fused_norms_leave_the_logits_as_they_were():
    model = tiny_llama()
    generator = torch.Generator().manual_seed(1)
    norms = [name for name, module in model.named_modules() if type(module).__name__ == "LlamaRMSNorm"]
    for number, name in enumerate(norms):
        module = model.get_submodule(name)
        module.weight.data.uniform_(0.5, 1.5, generator=generator)
        module.variance_epsilon = 10.0 ** -(1 + number)
    ids = torch.randint(1, 64, (2, 9), generator=generator)
    with torch.no_grad():
        before = model(input_ids=ids).logits
        fuse_norms(model)
        after = model(input_ids=ids).logits
    assert len(norms) == 5
    assert all(isinstance(model.get_submodule(name), torch.nn.RMSNorm) for name in norms)
    torch.testing.assert_close(after, before, atol=1e-5, rtol=0)
    assert (after - after.mean()).abs().max() > 0.01


def test_no_gradient_of_the_old_factors_moves_the_new_ones(base, rows):
    """After resharing, the step's gradient belongs to factors that are gone: the job's new ones stay as they are."""
    cost = sum(target.cost for target in targets_of(base.shapes()))
    mover, kept = Reshared(targets_of(base.shapes()), [1], [cost], 9), []

    def watch(adapters, grad):
        if mover.seen == 4:
            kept.append(adapters.master[1].clone())
        mover(adapters, grad)
        if mover.seen == 4:
            kept.append(adapters.master[1].clone())

    train_jobs(
        base, rows["train"], [dict.fromkeys(base.modules, 3)] * 2, [1e-2] * 2, [1, 2], 9, 2, watchers=[watch]
    ).remove()
    torch.testing.assert_close(kept[1], kept[0])


def test_a_pilot_that_runs_out_of_memory_leaves_the_base_as_it_was(base, rows, monkeypatch):
    def large(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("rank_study.facts.delta_metrics", large)
    with pytest.raises(torch.OutOfMemoryError):
        run_pilots(base, rows["train"], 8, 1e-2, 2, 2, [1])
    assert not any(isinstance(module, ManyLoraLinear) for module in base.model.modules())
