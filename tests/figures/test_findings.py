"""Findings: each rule fires on the matrix made for it, and all are silent on noise; the usual is in test_typical."""

import json
import re
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pytest

from glmspectra.figures import Tables
from glmspectra.figures.findings import MOST, RULES, Evidence, Scores, find, rules_as_markdown
from glmspectra.figures.findings.evidence import deviations, enough
from glmspectra.figures.tables import with_series
from glmspectra.figures.training_log import TrainingRun, read_training

MATRICES = ("query_key_value", "dense")
LAYERS = 28


def noise(seed: int = 0, **planted) -> pd.DataFrame:
    """A table of ordinary weights: every measure spread by a tenth around a usual value.

    planted: column -> {(layer, matrix): value}, or one value for all.
    """
    random = np.random.default_rng(seed)
    usual = {"stable_rank": 40, "effective_rank": 900, "spectral_norm": 6, "frobenius_norm": 60, "alpha": 3.5}
    usual |= {"alpha_ks": 0.05, "std": 0.02, "excess_kurtosis": 1.5, "abs_max": 0.3, "condition_number": 900}
    usual |= {"top12_energy_share": 0.1, "mp_spikes": 60, "row_norm_median": 1.0, "col_norm_median": 1.0}
    keys = [(layer, matrix) for layer in range(LAYERS) for matrix in MATRICES]
    rows = pd.DataFrame(keys, columns=["layer", "matrix"])
    rows = rows.assign(name=[f"layers.{layer}.{matrix}.weight" for layer, matrix in keys], part="whole", status="ok")
    rows = rows.assign(rows=4096, cols=4096, dtype="float16", quantity="weight", step=pd.NA)
    for name, value in usual.items():
        rows[name] = value * np.exp(0.1 * random.normal(size=len(rows)))
    rows["mp_spikes"] = rows["mp_spikes"].round().astype(int)
    for norms in ("largest_row_norms", "largest_col_norms"):
        rows[norms] = [[1.3] for _ in range(len(rows))]
    return plant(rows, planted).astype({"layer": "Int64", "step": "Int64"})


def plant(rows: pd.DataFrame, planted: dict) -> pd.DataFrame:
    for name, values in planted.items():
        if not isinstance(values, dict):
            rows[name] = values
            continue
        for (layer, matrix), value in values.items():
            place = rows.index[(rows["layer"] == layer) & (rows["matrix"] == matrix)][0]
            if isinstance(value, list):
                rows.at[place, name] = value
            else:
                rows[name] = rows[name].astype(object if isinstance(value, str) else float)
                rows.loc[place, name] = value
    return rows


def weights(**planted) -> Evidence:
    return Evidence({"weight": Tables(with_series(noise(**planted)))})


def changes(**planted) -> pd.DataFrame:
    """Ordinary changes: a few percent of the weight, most of the rank in use."""
    usual = {"relative_frobenius": 0.03, "allotted_rank": 8, "share_of_rank_in_use": 0.875, "rank": 8, "intruders": 0}
    rows = noise(seed=3).drop(columns=["alpha", "alpha_ks", "mp_spikes", "condition_number", "top12_energy_share"])
    random = np.random.default_rng(4)
    rows = rows.assign(quantity="delta", **usual)
    rows["relative_frobenius"] *= np.exp(0.1 * random.normal(size=len(rows)))
    return plant(rows, planted)


def delta(**planted) -> Evidence:
    return Evidence({"delta": Tables(with_series(changes(**planted)))})


def grown(factor: float) -> Evidence:
    first, last = changes(step=100), changes(step=200)
    last["frobenius_norm"] = first["frobenius_norm"] * factor
    return Evidence(steps=pd.concat([first, last], ignore_index=True).astype({"step": "Int64"}))


def ranks(chosen, uniform: int = 8, **others) -> Evidence:
    """Ranks of every matrix; chosen and others: a function of layer and matrix."""
    rows = []
    for criterion, rank in {"delta-threshold": chosen, "uniform": lambda *_: uniform, **others}.items():
        rows += [(criterion, f"layers.{i}.{m}.weight", i, m, rank(i, m)) for i in range(LAYERS) for m in MATRICES]
    table = pd.DataFrame(rows, columns=["criterion", "name", "layer", "matrix", "rank"])
    return Evidence(weights().sets, ranks=table)


def run_of(name: str = "run", **columns) -> TrainingRun:
    """A log of 40 steps; columns replace the ordinary ones."""
    steps = np.arange(1, 41)
    history = pd.DataFrame({"step": steps * 10.0, "epoch": steps / 40, "loss": 2.0 + np.exp(-steps / 10)})
    history = history.assign(learning_rate=1e-4, grad_norm=1.0 + 0.1 * np.sin(steps), tokens_per_second=900.0)
    history["eval_loss"] = np.where(steps % 10 == 0, 2.1 + 0.0001 * (40 - steps), np.nan)
    history = history.assign(**columns)
    history["eval_perplexity"] = np.exp(history["eval_loss"])
    if "logged_perplexity" not in history:
        history["logged_perplexity"] = np.nan
    return TrainingRun(name, Path(name), history, pd.DataFrame(columns=["step", "module", "layer", "matrix", "rank"]))


def logged(steps: int = 60, **planted: dict[int, float]) -> TrainingRun:
    """A log read from a file as the Trainer writes it, every tenth step; planted: measure -> {step: value}."""
    entries = [
        {"step": step, "loss": 2.0, "grad_norm": 1.0, "learning_rate": 1e-4}
        | {measure: values[step] for measure, values in planted.items() if step in values}
        for step in range(10, steps + 1, 10)
    ]
    with TemporaryDirectory() as folder:
        Path(folder, "trainer_state.json").write_text(json.dumps({"log_history": entries}), encoding="utf-8")
        return read_training(Path(folder), "run")


def trained(*runs: TrainingRun) -> Evidence:
    return Evidence(training=runs or (run_of(),))


def evaluated(low: float, high: float, pair: str) -> Evidence:
    gap = {"mean": (low + high) / 2, "low": low, "high": high, "rows": 96}
    return Evidence(scores=Scores(differences={pair: gap}))


def compared(**planted) -> Evidence:
    one = noise()
    return Evidence(compared={"A": Tables(one), "B": Tables(plant(one.copy(), planted))})


def at_step(values: dict[int, float]) -> np.ndarray:
    """Evaluation losses of `run_of` at steps 100, 200, 300, 400, NaN elsewhere."""
    return np.array([values.get(int(step), np.nan) for step in np.arange(1, 41) * 10])


DENSE_3 = (3, "dense")

# rule -> evidence made so that it fires, and words of its sentence in both languages.
MADE = {
    "against-uniform": (lambda: evaluated(-0.01, 0.02, "suggested-uniform"), "can be seen: +0.0050", "看不出差别"),
    "against-base": (lambda: evaluated(-5.8, -5.4, "suggested-base"), "−5.6000 nats a token", "微调使损失降低"),
    "nonfinite": (lambda: weights(status={DENSE_3: "nonfinite"}), "layers.3.dense.weight", "没有奇异值谱"),
    "outlier": (
        lambda: weights(stable_rank={DENSE_3: 3.9}),
        "Layer 3 dense: stable rank 3.9, median of",
        "稳定秩为 3.9",
    ),
    "far-entries": (lambda: weights(abs_max={DENSE_3: 2.0}), "standard deviations from zero", "int4"),
    "channels": (lambda: weights(largest_row_norms={DENSE_3: [9.0]}), "output row", "离群通道"),
    "poor-fits": (lambda: weights(alpha=7.0), "100 % of the power-law fits", "不宜解读"),
    "like-noise": (lambda: weights(mp_spikes=0), "56 of 56 matrices show no direction", "训练过吗"),
    "lost-rank": (
        lambda: weights(condition_number={DENSE_3: 1e9}),
        "has lost rank: condition number 1e+09",
        "丢失了秩",
    ),
    "few-directions": (lambda: weights(top12_energy_share={DENSE_3: 0.7}), "12 directions hold 70 %", "前 12 个方向"),
    "trend": (
        lambda: weights(spectral_norm={(i, "dense"): 4 * 1.1**i for i in range(LAYERS)}),
        "dense: spectral norm rises with depth",
        "谱范数随深度上升",
    ),
    "larger-than-weight": (
        lambda: delta(relative_frobenius={(i, "dense"): 1.5 for i in range(LAYERS)}),
        "ΔW is larger than W in 28 of 56 matrices",
        "学习率很可能过高",
    ),
    "outlying-change": (
        lambda: delta(effective_rank={DENSE_3: 30}),
        "ΔW of layer 3 dense: effective rank 30",
        "有效秩为 30",
    ),
    "unchanged": (lambda: delta(spectral_norm={DENSE_3: 0.0}), "Layer 3 dense did not change at all", "毫无改变"),
    "short-of-rank": (
        lambda: delta(share_of_rank_in_use=1.0),
        "56 of 56 matrices of rank 2 or more use every direction",
        "用尽",
    ),
    "idle-rank": (lambda: delta(share_of_rank_in_use=0.25), "75 % of the rank that was allotted is idle", "闲置"),
    "intruders": (lambda: delta(intruders={(i, "dense"): 4 for i in range(9)}), "9 of 56 matrices have", "侵入维度"),
    "still-growing": (lambda: grown(1.3), "grew by 30 % between the last two", "训练尚未结束"),
    "near-uniform": (
        lambda: ranks(lambda i, m: 9 if i == 0 else 8),
        "of the parameters stand elsewhere",
        "宜直接使用统一的 r",
    ),
    "far-from-uniform": (
        lambda: ranks(lambda i, m: 12 if m == "dense" else 4),
        "dense gets most (+4.0 on",
        "dense 得到最多",
    ),
    "left-out": (
        lambda: ranks(lambda i, m: 0 if (i, m) == DENSE_3 else 9),
        "1 of 56 matrices gets rank 0",
        "没有适配器",
    ),
    "criteria-disagree": (
        lambda: ranks(lambda i, m: 12, alpha=lambda i, m: 40 if (i, m) == DENSE_3 else 4),
        "on layer 3 dense delta-threshold gives 12, alpha gives 40",
        "各准则不一致",
    ),
    "nonfinite-loss": (
        lambda: trained(logged(loss={30: float("nan"), 40: float("nan")})),
        "training loss became NaN or infinite at step 30",
        "训练损失在第 30 步变为 NaN",
    ),
    "overfitting": (
        lambda: trained(run_of(eval_loss=at_step({100: 2.2, 200: 2.0, 300: 2.1, 400: 2.3}))),
        "lowest at step 200 (2) and ended 15 % higher (2.3)",
        "第 200 步最低",
    ),
    "still-falling": (
        lambda: trained(run_of(eval_loss=at_step({100: 2.6, 200: 2.4, 300: 2.2, 400: 2.0}))),
        "still falling at the end, by 9.1 % over the last 100 steps",
        "仍在下降",
    ),
    "gradient-spikes": (
        lambda: trained(run_of(grad_norm=np.where(np.arange(40) == 20, 30.0, 1.0))),
        "jumped to 30 times its median at step 210",
        "跳到中位数的 30 倍",
    ),
    "divergence": (lambda: trained(run_of(loss=np.linspace(2, 5, 40))), "diverged: training loss", "发散"),
    "rates-apart": (
        lambda: trained(run_of("a"), run_of("b", learning_rate=1e-2)),
        "are 100 times apart",
        "相差 100 倍",
    ),
    "best-run": (
        lambda: trained(run_of("a"), run_of("b", eval_loss=at_step({100: 1.9, 200: 1.8, 300: 1.8, 400: 1.8}))),
        "b reached the lowest evaluation loss: 1.8",
        "b 的验证损失最低",
    ),
    "wrong-perplexity": (
        lambda: trained(run_of(logged_perplexity=at_step({100: 4.3, 200: 4.3}))),
        "a perplexity that is not exp of its loss",
        "不是损失的指数",
    ),
    "same-answers": (
        lambda: Evidence(scores=Scores(samples=[{"base": "a", "tuned": "a"}, {"base": "b", "tuned": "c"}])),
        "left 1 of 2 answers",
        "没有变化",
    ),
    "moved-measures": (
        lambda: compared(effective_rank=500.0),
        "effective rank 905 in A, 500 in B",
        "有效秩在 A 中为",
    ),
    "alike": (lambda: compared(), "A and B agree", "一致"),
    "nothing-shared": (lambda: compared(matrix="other"), "have no matrix name in common", "没有同名矩阵"),
}


def fired(evidence: Evidence) -> dict[str, str]:
    return {rule.name: finding for rule in RULES for finding in list(rule.look(evidence, rule))[:1]}


@pytest.mark.parametrize("name", [rule.name for rule in RULES])
def test_each_rule_fires_on_its_case(name):
    make, english, chinese = MADE[name]
    finding = fired(make())[name]
    assert english in finding.words.en
    assert chinese in finding.words.zh
    assert finding.size >= 1
    assert finding.link.startswith("#")


@pytest.mark.parametrize("seed", range(5))
def test_all_rules_are_silent_on_noise(seed):
    tables = Tables(with_series(noise(seed)))
    assert fired(Evidence({"weight": tables})) == {}
    assert fired(Evidence({"delta": Tables(with_series(changes()))})) == {}
    assert fired(Evidence(training=[run_of()])) == {}
    assert fired(grown(1.02)) == {}
    assert find(Evidence({"weight": tables}))[0].rule == "nothing"
    assert "Nothing stands out" in find(Evidence({"weight": tables}))[0].words.en


@pytest.mark.parametrize(
    ("planted", "said"),
    [
        ({"loss": {20: float("inf")}}, "training loss became NaN or infinite at step 20"),
        ({"eval_loss": {50: float("nan")}}, "evaluation loss became NaN or infinite at step 50"),
        ({"grad_norm": dict.fromkeys((40, 50, 60), float("nan"))}, "gradient norm became NaN or infinite at step 40"),
        # A float16 scaler looks for its scale at the beginning, and steps over one that overflows.
        ({"grad_norm": {10: float("inf"), 20: float("nan"), 60: float("inf")}}, None),
    ],
)
def test_losses_that_are_no_numbers_are_told_and_skipped_steps_are_not(planted, said):
    found = find(trained(logged(**planted)))
    assert found[0].rule == ("nonfinite-loss" if said else "nothing")
    assert (said or "Nothing stands out") in found[0].words.en
    assert not any(finding.rule == "divergence" for finding in found)


def test_findings_are_few_answers_first_and_then_the_farthest():
    planted = {(i, "dense"): 7.0 for i in (2, 9)}
    evidence = weights(stable_rank={DENSE_3: 3.9}, alpha=8.0, condition_number={DENSE_3: 1e12}, abs_max=planted)
    evidence = Evidence(evidence.sets, scores=evaluated(-0.1, 0.1, "suggested-uniform").scores)
    found = find(evidence)
    assert found[0].rule == "against-uniform"
    assert len(found) <= MOST
    assert [finding.size for finding in found[1:]] == sorted((finding.size for finding in found[1:]), reverse=True)


@pytest.mark.parametrize(
    ("gap", "said"), [((-0.3, -0.1), "did better than uniform"), ((0.1, 0.3), "did better than the")]
)
def test_the_answer_follows_the_interval(gap, said):
    assert said in find(evaluated(*gap, "suggested-uniform"))[0].words.en


@pytest.mark.parametrize("layers", [6, 12, 28, 80])
def test_noise_rarely_reaches_the_threshold_of_an_outlier(layers):
    random = np.random.default_rng(layers)
    series = np.repeat([str(i) for i in range(1000)], layers)
    size, _ = deviations(series, random.normal(size=layers * 1000), False)
    assert len(np.unique(np.flatnonzero(size) // layers)) <= 4, "rows of a thousand with a cell beyond it"
    assert enough(80) < enough(28) < enough(6)


def test_an_outlier_is_seen_among_parts_and_a_pattern_is_none():
    values = np.full(28, 1.0)
    values[[0, 5]] = 9.0
    series = np.array(["dense q"] * 28, dtype=object)
    size, middle = deviations(series, values, True)
    assert np.flatnonzero(size).tolist() == [0, 5]
    assert middle[0] == pytest.approx(1.0)
    values[:14:2] = 9.0
    assert not deviations(series, values, True)[0].any(), "a quarter of the layers is a pattern"


def odd_tables() -> dict[str, pd.DataFrame]:
    """Tables that a rule may stumble over: nothing varies, nothing is known, all is infinite, one row, one layer."""
    rows = noise()
    numbers = [name for name in rows.select_dtypes("number") if name not in ("layer", "step", "rows", "cols")]
    return {
        "constant": rows.assign(**dict.fromkeys(numbers, 1)),
        "zero": rows.assign(**dict.fromkeys(numbers, 0)),
        "unknown": rows.assign(**{name: pd.Series(pd.NA, index=rows.index, dtype="Float64") for name in numbers}),
        "nan": rows.assign(**dict.fromkeys(numbers, np.nan)),
        "infinite": rows.assign(**{name: np.inf for name in numbers if name != "mp_spikes"}),
        "one row": rows.iloc[:1],
        "one layer": rows[rows["layer"] == 0],
        "no layer": rows.assign(layer=pd.Series(pd.NA, index=rows.index, dtype="Int64")),
        "none": rows.iloc[:0],
    }


@pytest.mark.parametrize("odd", odd_tables())
def test_odd_tables_break_no_rule_and_give_no_sentence_without_a_number(odd):
    table = odd_tables()[odd]
    change = table.assign(quantity="delta", allotted_rank=8, share_of_rank_in_use=1.0, relative_frobenius=table["std"])
    sets = {"weight": Tables(with_series(table)), "delta": Tables(with_series(change.assign(intruders=0)))}
    steps = pd.concat([change.assign(step=step) for step in (1, 2)], ignore_index=True).astype({"step": "Int64"})
    for found in find(Evidence(sets, steps=steps)):
        assert not re.search("nan|NaN|<NA>|None", found.words.en + found.words.zh + found.value), found
    for found in find(Evidence(compared={"A": sets["weight"], "B": sets["weight"]})):
        assert not found.size or found.rule in ("alike", "nothing-shared"), found


def test_each_expert_of_a_stack_is_a_matrix():
    table = weights(mp_spikes=0).sets["weight"].matrices
    experts = pd.concat([table.assign(part=f"expert_{n}") for n in range(4)], ignore_index=True)
    assert fired(Evidence({"weight": Tables(with_series(experts))}))["like-noise"].value == "100 %"
    heads = table.assign(part="q.head_0")
    assert "like-noise" not in fired(Evidence({"weight": Tables(with_series(heads))}))


def test_a_finding_of_the_weights_on_a_page_of_their_change_says_so():
    of_weights = weights(top12_energy_share=0.7)
    pages = of_weights, Evidence({**of_weights.sets, **delta().sets})
    alone, beside = (next(one.words for one in find(page) if one.rule == "few-directions") for page in pages)
    assert "not of the change" not in alone.en
    assert beside.en == alone.en + " This speaks of the weights W, not of the change."
    assert beside.zh == alone.zh + "这里说的是权重 W，不是改变量。"


def test_the_median_in_a_finding_is_the_plain_one():
    values = np.array([1.0, 2.0, 4.0, 5.0, 5.0, 900.0])
    assert deviations(np.array(["dense"] * 6), values, True)[1][0] == 4.5


def test_what_was_not_measured_is_not_counted():
    half = {(i, m): 0 if i == 0 else np.nan for i in range(LAYERS) for m in MATRICES}
    found = fired(weights(mp_spikes=half))["like-noise"]
    assert "2 of 2 matrices" in found.words.en


def test_a_measure_near_zero_has_no_ratio_to_tell():
    assert "moved-measures" not in fired(compared(excess_kurtosis=0.0001))
    assert "moved-measures" not in fired(compared(excess_kurtosis=-15.0))


def test_ranks_that_differ_by_layer_alone_name_layers():
    found = fired(ranks(lambda i, m: 4 if i < LAYERS // 2 else 12))["far-from-uniform"]
    assert "layer 14 gets most (+4.0 on average), layer 0 least" in found.words.en
    assert "第 14 层得到最多" in found.words.zh


@pytest.mark.parametrize("pair", ["suggested-uniform", "tuned-base"])
def test_one_row_has_no_interval(pair):
    gap = {"mean": -0.2, "low": np.nan, "high": np.nan, "rows": 1}
    found = find(Evidence(scores=Scores(differences={pair: gap})))[0]
    assert "nothing can be said" in found.words.en
    assert "−0.2000 nats" in found.words.en
    assert "不能下结论" in found.words.zh


def test_the_documents_show_the_table_of_rules():
    page = Path(__file__).parents[2] / "docs" / "findings.md"
    assert rules_as_markdown() in page.read_text(encoding="utf-8")


@pytest.mark.shared
def test_the_study_of_2023(shared):
    run = read_training(shared / "reference" / "study_runs" / "qlora")
    assert {"wrong-perplexity"} <= fired(Evidence(training=[run])).keys()
    log = json.loads((shared / "reference" / "study_runs" / "qlora" / "trainer_state.json").read_text())
    assert any("eval_perplexity" in entry for entry in log["log_history"])
