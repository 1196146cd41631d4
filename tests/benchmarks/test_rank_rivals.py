"""The third part of the study: rivals that PEFT trains, what adapters answer, and what its stages hold."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from rank_study import beyond, controls, rivals
from rank_study.bases import EOS, Base, byte_text, byte_tokens, layer_linears
from rank_study.control_arms import CONTROLS, PEFT_ARMS
from rank_study.facts import train_jobs
from rank_study.many_adapters import SideBySide
from rank_study.peft_arms import run_peft
from rank_study.plan import CONFIRM_SEEDS, CURVE_SEEDS, SCREEN_SEEDS, Job
from rank_study.tasks import encode
from rank_study.third_base import neox_config

PAIRS = [(f"{n}: {word}?", f"{word[::-1]} {n}.") for n, word in enumerate(("ache", "head", "rest", "tea") * 6)]


@pytest.fixture(scope="module")
def base():
    from transformers import GPTNeoXForCausalLM

    torch.manual_seed(0)
    config = neox_config()
    config.update({"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48})
    model = GPTNeoXForCausalLM(config).eval()
    return Base("neox", model, byte_tokens, [1], EOS, layer_linears(model), 64, "tiny")


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
