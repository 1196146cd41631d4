"""The third part of the study: rivals that PEFT trains, what adapters answer, and what its stages hold."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from rank_study import beyond, controls, rivals
from rank_study import facts as facts_module
from rank_study.bases import EOS, byte_text, byte_tokens
from rank_study.control_arms import BY_MATRIX, CONTROLS, PEFT_ARMS
from rank_study.facts import consensus_of, input_moments, output_sizes, second_order_sizes, train_jobs
from rank_study.many_adapters import SideBySide
from rank_study.peft_arms import run_peft
from rank_study.plan import CONFIRM_SEEDS, CURVE_SEEDS, SCREEN_SEEDS, Job
from rank_study.tasks import encode

from tests.benchmarks.tiny_bases import tiny_neox

PAIRS = [(f"{n}: {word}?", f"{word[::-1]} {n}.") for n, word in enumerate(("ache", "head", "rest", "tea") * 6)]


@pytest.fixture(scope="module")
def base():
    return tiny_neox()


@pytest.fixture(scope="module")
def rows(base):
    return {
        name: encode(part, base.tokens, base.prefix, base.eos, base.length)
        for name, part in (("train", PAIRS[:16]), ("test", PAIRS[16:]))
    }


def lines_of(text):
    return [json.loads(line) for line in text.splitlines()]


def test_peft_follows_the_uniform_adapters_side_by_side(base, rows):
    """The same rows, rates and schedule: from the same start PEFT's LoRA and ours end at the same loss."""
    ours = train_jobs(base, rows["train"], [dict.fromkeys(base.modules, 4)], [1e-2], [400], 6, 2)
    try:
        own = float(ours.evaluate(rows["test"].batches(4, "cpu"))[0])
    finally:
        ours.remove()
    before = float(SideBySide(base.model, 1, "cpu").evaluate(rows["test"].batches(4, "cpu"))[0])
    (line,) = lines_of(run_peft(base, rows, [Job("neox", "medical", "peft-lora", 4, 400, 1e-2, "test")], 6, 2))
    assert before - own > 0.1
    assert line["loss"] == pytest.approx(own, abs=0.1 * (before - own))  # another draw of A's start
    assert line["parameters"] == 4 * sum(sum(shape) for shape in base.shapes().values())


def test_what_peft_trains_leaves_the_base_as_it_was_and_counts_its_parameters(base, rows):
    weights = {name: base.model.get_submodule(name).weight.clone() for name in base.modules}
    jobs = [Job("neox", "medical", arm, 2, 400, 5e-3, "test") for arm in PEFT_ARMS]
    lines = {line["arm"]: line for line in lines_of(run_peft(base, rows, jobs, 10, 2))}
    assert set(lines) == set(PEFT_ARMS)
    for name, weight in weights.items():
        assert type(base.model.get_submodule(name)) is torch.nn.Linear
        assert torch.equal(base.model.get_submodule(name).weight, weight)
    whole = 2 * sum(sum(shape) for shape in base.shapes().values())
    outs = sum(out for out, _ in base.shapes().values())
    assert lines["peft-lora"]["parameters"] == lines["peft-pissa"]["parameters"] == whole
    assert lines["peft-dora"]["parameters"] == whole + outs
    assert len({round(line["loss"], 6) for line in lines.values()}) == len(PEFT_ARMS)


def test_row_scores_are_the_mean_loss_and_the_share_of_right_tokens(base, rows):
    one = SideBySide(base.model, 1, "cpu")
    losses, hits = beyond.row_scores(one, rows["test"], 3)
    with torch.no_grad():
        logits = base.model(input_ids=rows["test"].input_ids).logits[:, :-1]
    labels = rows["test"].labels[:, 1:]
    for number in range(len(rows["test"])):
        known = labels[number] != -100
        own = torch.nn.functional.cross_entropy(logits[number][known], labels[number][known])
        assert float(losses[0, number]) == pytest.approx(float(own), abs=1e-5)
        right = (logits[number][known].argmax(-1) == labels[number][known]).double().mean()
        assert float(hits[0, number]) == pytest.approx(float(right))


def test_adapters_side_by_side_answer_as_each_would_alone(base, rows, monkeypatch):
    monkeypatch.setattr(beyond, "NEW", 6)
    ranks = dict.fromkeys(base.modules, 4)
    adapters = train_jobs(base, rows["train"], [ranks, ranks], [3e-2, 1e-2], [1, 2], 20, 2)
    questions = [question for question, _ in PAIRS[16:]]
    try:
        both = beyond.generated(adapters, base, questions)
    finally:
        adapters.remove()
    alone = train_jobs(base, rows["train"], [ranks], [1e-2], [2], 20, 2)
    try:
        for question, answer in zip(questions, both[1], strict=True):
            assert beyond.generated(alone, base, [question])[0][0] == answer  # no padding here
    finally:
        alone.remove()
    assert both[0] != both[1]


def test_a_choice_holds_the_own_answer_first_and_others_of_its_length():
    found = beyond.choices_of(PAIRS)
    assert len(found) == 4 * len(PAIRS)
    for number, (question, answer) in enumerate(PAIRS):
        own = found[4 * number : 4 * number + 4]
        assert own[0] == (question, answer)
        assert {asked for asked, _ in own} == {question}
        assert answer not in [text for _, text in own[1:]]


@pytest.mark.parametrize(
    ("answer", "reference"), [("头痛两天 吃药", "头很痛，吃药两天"), ("a b", "b a b"), ("", "x"), ("你好", "你好")]
)
def test_rouge_l_is_that_of_rouge_score(answer, reference):
    scorer = pytest.importorskip("rouge_score.rouge_scorer")
    characters = type("Characters", (), {"tokenize": lambda self, text: list("".join(text.split()))})()
    theirs = scorer.RougeScorer(["rougeL"], tokenizer=characters).score(reference, answer)["rougeL"].fmeasure
    assert beyond.rouge_l(answer, reference) == pytest.approx(theirs)


def test_a_body_parses_with_its_head_or_not():
    head = "    def area(self):\n        '''Of it.'''\n"
    assert beyond.parses(head, "        return 1\n")
    assert not beyond.parses(head, "        return (\n")
    assert not beyond.parses(head, "\n")
    assert beyond.whole_lines("a\nbc") == "a\n"


def test_bytes_come_back_as_the_text_they_were():
    assert byte_text([1, *byte_tokens("头痛 a"), EOS]) == "头痛 a"
    assert byte_text(byte_tokens("头")[:2]) == ""


def test_the_stages_hold_known_arms_and_seeds_that_no_other_part_has_seen():
    assert {arm for stage in rivals.STAGES for arm in stage.arms} <= set(CONTROLS)
    others = {*controls.SEEDS, *controls.RATE_SEEDS, *SCREEN_SEEDS}
    others |= set().union(*CONFIRM_SEEDS.values(), *CURVE_SEEDS.values())
    assert not set(rivals.SEEDS) & others
    for stage in rivals.STAGES:
        assert any(
            "uniform" in one.arms and (one.base, one.task) == (stage.base, stage.task)
            for one in rivals.STAGES
            if set(stage.budgets) <= set(one.budgets)
        ), stage


def test_rivals_of_peft_go_in_small_groups_of_their_own():
    found = []
    for _ in range(30):
        group = controls.next_group(("chatglm2",), found, [], (), rivals.SIDE_BY_SIDE, rivals.BY_PEFT)
        assert {controls.way_of(one) for one in group} == {"peft"}
        assert len(group) <= controls.PEFT_TOGETHER
        found += [{**vars(one), "loss": 1 + abs(math.log(one.rate / 6e-4))} for one in group]
    rates = {line["rate"] for line in found if line["arm"] == "peft-pissa"}
    assert min(rates) < controls.LIMITS[0] < max(rates), "PiSSA's grid goes lower than the others'"


def test_output_sizes_are_those_of_the_dense_product(base, rows):
    moments = input_moments(base, rows["train"], batches=2, batch=4)
    seen = []
    hook = base.model.get_submodule(base.modules[1]).register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    for at in range(2):
        taken = rows["train"].take(torch.arange(4 * at, 4 * at + 4), "cpu")
        base.model(input_ids=taken["input_ids"])
        seen[-1] = seen[-1][taken["attention_mask"].bool()]
    hook.remove()
    inputs = torch.cat(seen).double()
    adapters = train_jobs(base, rows["train"], [dict.fromkeys(base.modules, 3)], [1e-2], [1], 4, 2)
    try:
        found = output_sizes(adapters, moments)[0]
        deltas = {name: (up[0] @ down[0]).double() for name, up, down in adapters.factors()}
    finally:
        adapters.remove()
    name = base.modules[1]
    weight = base.model.get_submodule(name).weight.double()
    scale = (inputs @ weight.T).square().sum().sqrt()
    dense = torch.linalg.svdvals(inputs @ deltas[name].T) / scale
    torch.testing.assert_close(torch.from_numpy(found[name])[:3].double(), dense[:3], rtol=2e-3, atol=1e-6)
    random = (weight.square().sum() * inputs.square().sum() / inputs.shape[1]).sqrt()
    assert moments[name].norm == pytest.approx(float(scale / random), rel=1e-3)


def test_second_order_sizes_are_the_gradients_of_gates(base, rows, monkeypatch):
    monkeypatch.setattr(facts_module, "SECOND_ORDER_ROWS", 3)
    adapters = train_jobs(base, rows["train"], [dict.fromkeys(base.modules, 3)], [1e-2], [1], 6, 2)
    name = base.modules[0]
    try:
        (found,) = second_order_sizes(adapters, rows["train"])
        linear = base.model.get_submodule(name).base
        adapters_delta = next(up[0] @ down[0] for own, up, down in adapters.factors() if own == name)
    finally:
        adapters.remove()
    # dense: all other adapters as they were, this one merged into a weight whose gradient is taken
    again = train_jobs(base, rows["train"], [dict.fromkeys(base.modules, 3)], [1e-2], [1], 6, 2)
    weight = (linear.weight + adapters_delta).detach().requires_grad_()
    merged = torch.nn.Linear(*reversed(weight.shape))
    merged.weight, merged.bias = torch.nn.Parameter(weight), linear.bias
    left, sigma, right = torch.linalg.svd(adapters_delta)
    total = torch.zeros(3)
    try:
        base.model.set_submodule(name, merged)
        index = torch.randperm(len(rows["train"]), generator=torch.Generator().manual_seed(0))[:3]
        for row in index:
            summed, count = again.losses(rows["train"].take(row[None], "cpu"))
            (grad,) = torch.autograd.grad(summed[0] / count[0], [merged.weight])
            total += (sigma[:3] * (left[:, :3].T @ grad @ right[:3].T).diagonal()).square()
    finally:
        base.model.set_submodule(name, linear)
        again.remove()
    expected = (total / 3 / 2).sqrt().sort(descending=True).values
    torch.testing.assert_close(torch.from_numpy(found[name][:3]), expected.detach(), rtol=2e-2, atol=1e-7)


def test_the_consensus_of_pilots_is_the_dense_mean(base, rows, monkeypatch):
    made = []
    kept = facts_module.ManyAdapters

    def watched(*given, **more):
        made.append(kept(*given, **more))
        return made[-1]

    monkeypatch.setattr(facts_module, "ManyAdapters", watched)
    found = consensus_of(base, rows["train"], 2, 1e-2, 4, 2, [(7, 8), (9, 10)])
    for name, up, down in made[0].factors():
        deltas = up.double() @ down.double()
        for own, jobs in zip(found, ((0, 1), (2, 3)), strict=True):
            dense = torch.linalg.svdvals(deltas[list(jobs)].mean(0))
            torch.testing.assert_close(torch.from_numpy(own[name])[:4], dense[:4], rtol=1e-4, atol=1e-9)


def test_a_kind_of_matrix_has_a_rate_of_its_own(base, rows):
    ranks = dict.fromkeys(base.modules, 3)
    twice = dict.fromkeys([name for name in base.modules if name.endswith("query_key_value")], 2.0)
    both = train_jobs(base, rows["train"], [ranks, ranks], [1e-3] * 2, [1, 1], 2, 2, layer_rates=[twice, {}])
    both.remove()
    for name in base.modules:
        _, up = both.of(both.master, name)
        torch.testing.assert_close(up[0], twice.get(name, 1.0) * up[1], rtol=1e-3, atol=1e-9)  # AdamW's first step


def test_rates_by_matrix_type_take_the_best_factor_of_each():
    where, lines = ("neox", "medical"), []
    better = {"dense": 2.0, "dense_h_to_4h": 0.5}

    def loss(job):
        found = abs(math.log(job.rate / 5.6e-3))
        for results in job.arm.partition(":")[2].split(",") if ":" in job.arm else []:
            matrix, factor = results.split("=")
            found += -0.1 if better.get(matrix) == float(factor) else 0.1 * (float(factor) != 1)
        return 5.0 + found

    stage = controls.Stage("controls", *where, ("uniform", BY_MATRIX), (4,), 1, (400,))
    for _ in range(12):
        jobs = controls.open_jobs(stage, controls.Found(lines))
        lines += [{**vars(job), "loss": loss(job)} for job in jobs]
    assert not jobs
    results = "query_key_value=1,dense=2,dense_h_to_4h=0.5,dense_4h_to_h=1"
    assert {line["arm"] for line in lines if line["part"] == "test"} == {"uniform", f"{BY_MATRIX}:{results}"}
    assert controls.Found(lines).losses(*where, BY_MATRIX, 4, "test")
    assert set(controls.MATRICES["neox"]) == {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}


def test_plop_places_one_rank_on_half_of_the_matrix_types(base, rows, tmp_path):
    facts = facts_module.Facts(base, rows["train"], "medical", tmp_path, 2e-3, 8, 2)
    budget = 2 * sum(target.cost for target in facts.targets)
    kept = {}
    for arm in controls.PLACED:
        ranks = CONTROLS[arm].ranks(facts, budget, 0)
        kept[arm] = {t.matrix for t in facts.targets if ranks[t.module]}
        assert len(kept[arm]) == 2
        used = [rank for rank in ranks.values() if rank]
        assert max(used) - min(used) <= 1
    assert not kept["plop-lowest"] & kept["plop-highest"]
