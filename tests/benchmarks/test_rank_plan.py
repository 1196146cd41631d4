"""The study's plan and tables: grids of rates grow, stages wait for each other, the challenger is found by its rule."""

import random
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from rank_study import plan as plan_module
from rank_study.arms import ARMS, CHALLENGERS, CONFIRMED, TUNED
from rank_study.document import document
from rank_study.plan import (
    BUDGETS,
    CONFIRM_SEEDS,
    CURVE_RANKS,
    CURVE_SEEDS,
    MIDDLE,
    RATE_SEEDS,
    RATES,
    SCREEN_SEEDS,
    SETTINGS,
    SIDE_BY_SIDE,
    STAGES,
    Job,
    NotReadyError,
    append_lines,
    best_rate,
    challenger,
    finished,
    in_order,
    jobs_of,
    line_of,
    next_group,
    open_jobs,
    plan,
    rates_wanted,
    read_lines,
)
from rank_study.statistics import EqualLoss, holm
from rank_study.table import against_type, costs, losses_of, markdown, saving, screened
from rank_study.table import rows as table_rows

from glmspectra.ranks import study_gains

GRID = ((4e-3, 1.2), (8e-3, 1.1), (1.6e-2, 1.3))  # rate and loss: the best is inside


def line(rate, loss, arm="uniform", budget=4, seed=10, part="development", **more):
    own = {"base": "smollm2", "task": "medical", "arm": arm, "budget": budget, "seed": seed, "rate": rate}
    return {**own, "part": part, "loss": loss, "seconds_of_group": 60.0, "jobs_in_group": 15, "steps": 240, **more}


def closed(base="smollm2", task="medical", arms=TUNED, budgets=BUDGETS):
    """Lines that close the grids of rates; the best rate is 8e-3."""
    return [
        line(rate, loss, arm, budget, seed, base=base, task=task)
        for arm in arms
        for budget in budgets
        for rate, loss in GRID
        for seed in RATE_SEEDS[base]
    ]


def screening(gaps, settings=SETTINGS):
    """Lines of a whole screening. gaps: arm -> difference from uniform in every setting, or setting by setting."""
    lines = []
    for place, (base, task) in enumerate(settings):
        for arm in ARMS:
            gap = np.broadcast_to(gaps.get(arm, 0.0), len(settings))[place] if arm != "uniform" else 0.0
            for number, seed in enumerate(SCREEN_SEEDS):
                own = 2.0 + seed + gap + (0.001 * (number - 1.5) if arm != "uniform" else 0.0)
                lines.append(line(8e-3, own, arm, MIDDLE, seed, base=base, task=task))
    return lines


def test_a_grid_of_rates_grows_until_the_best_is_inside_it():
    where = ("smollm2", "medical", "uniform", 4)
    assert rates_wanted([], *where) == [4e-3, 8e-3]
    lines = [line(4e-3, 1.2), line(8e-3, 1.1)]
    assert rates_wanted(lines, *where) == [1.6e-2]
    lines.append(line(1.6e-2, float("nan")))
    assert rates_wanted(lines, *where) == [], "diverged: the best is inside"
    assert best_rate(lines, *where) == 8e-3
    assert rates_wanted([line(4e-3, 1.0), line(8e-3, 1.1)], *where) == [2e-3]
    assert best_rate(lines, "smollm2", "medical", "uniform", 12) == 8e-3, "the nearest budget that was tuned"
    screened_too = [*lines, line(3e-3, 0.1, seed=20)]
    assert best_rate(screened_too, *where) == 8e-3, "seeds of the screening do not tune"
    assert rates_wanted([line(6.4e-2, 1.0), line(4e-3, 1.1), line(8e-3, 1.1)], *where) == [], "no grid grows for ever"


def test_a_rate_that_lacks_a_seed_is_not_tried_yet():
    where = ("chatglm2", "medical", "uniform", 4)
    assert rates_wanted([], *where) == [4e-3, 8e-3] == list(RATES)
    lines = [line(rate, 1.0 + rate, seed=10, base="chatglm2") for rate in (4e-3, 8e-3)]
    assert rates_wanted(lines, *where) == [4e-3, 8e-3]
    lines.append(line(4e-3, 1.0, seed=11, base="chatglm2"))
    assert rates_wanted(lines, *where) == [8e-3]
    lines.append(line(8e-3, 1.1, seed=11, base="chatglm2"))
    assert rates_wanted(lines, *where) == [2e-3]


def test_only_arms_that_are_confirmed_are_tuned_at_every_budget():
    jobs = list(jobs_of("rates", "smollm2", "medical", []))
    tuned = {(job.arm, job.budget) for job in jobs}
    assert tuned == {(arm, MIDDLE) for arm in TUNED} | {(arm, budget) for arm in CONFIRMED for budget in BUDGETS}
    assert {(job.arm, job.budget) for job in jobs[: 2 * len(TUNED)]} == {(arm, MIDDLE) for arm in TUNED}
    assert {job.part for job in jobs} == {"development"}


def test_an_arm_that_is_not_tuned_takes_delta_thresholds_rate():
    lines = closed(arms=("uniform", "adalora"))
    with pytest.raises(NotReadyError, match="No rates are tuned for delta-threshold on smollm2 and medical"):
        best_rate(lines, "smollm2", "medical", "eva", 4)
    lines += [line(rate, -loss, "delta-threshold") for rate, loss in GRID]
    assert best_rate(lines, "smollm2", "medical", "eva", 4) == 1.6e-2
    assert best_rate(lines, "smollm2", "medical", "adalora", 4) == 8e-3


def test_screening_waits_for_the_middle_budget_alone():
    with pytest.raises(NotReadyError, match="rates of adalora at r 4 on smollm2 and medical is open"):
        list(jobs_of("screen", "smollm2", "medical", closed(arms=CONFIRMED)))
    jobs = list(jobs_of("screen", "smollm2", "medical", closed(budgets=(MIDDLE,))))
    assert {(job.arm, job.seed) for job in jobs} == {(arm, seed) for arm in ARMS for seed in SCREEN_SEEDS}
    assert len(jobs) == len(ARMS) * 4
    assert {(job.budget, job.rate, job.part) for job in jobs} == {(MIDDLE, 8e-3, "development")}


def test_confirming_and_the_curve_wait_for_their_grids():
    for stage in ("confirm", "curve"):
        with pytest.raises(NotReadyError, match=r"rates of uniform at r 2 on smollm2 and medical is open \(next 0.004"):
            list(jobs_of(stage, "smollm2", "medical", closed(budgets=(MIDDLE,))))
    uniform = closed("chatglm2", arms=("uniform",))
    curve = list(jobs_of("curve", "chatglm2", "medical", uniform))
    assert {(job.budget, job.seed) for job in curve} == {(r, s) for r in CURVE_RANKS for s in CURVE_SEEDS["chatglm2"]}
    assert {(job.arm, job.part) for job in curve} == {("uniform", "test")}
    with pytest.raises(NotReadyError, match="rates of delta-threshold at r 2 on chatglm2"):
        list(jobs_of("confirm", "chatglm2", "medical", uniform))


@pytest.mark.parametrize("setting", SETTINGS)
def test_confirming_goes_seed_by_seed_over_the_seeds_of_its_setting(setting):
    jobs = list(jobs_of("confirm", *setting, closed(*setting)))
    each = len(CONFIRMED) * len(BUDGETS)
    assert [job.seed for job in jobs] == [seed for seed in CONFIRM_SEEDS[setting] for _ in range(each)]
    assert {(job.arm, job.budget) for job in jobs[:each]} == {(arm, budget) for arm in CONFIRMED for budget in BUDGETS}
    assert len(set(jobs)) == len(jobs)
    assert {job.part for job in jobs} == {"test"}
    known = SCREEN_SEEDS + RATE_SEEDS[setting[0]]
    assert not set(CONFIRM_SEEDS[setting]) & set(known), "fresh seeds"


def test_the_challenger_has_the_lowest_sum_of_mean_gaps():
    """eva is best in one setting, delta-energy in none, but over all of them."""
    gaps = {"eva": (-0.05, 0.03, 0.01), "delta-energy": (-0.02, -0.01, 0.0), "re-shared": (-0.03, 0.01, 0.0)}
    assert challenger(screening(gaps)) == "delta-energy"
    assert challenger(screening({**gaps, "eva": (-0.05, 0.03, -0.02)})) == "eva"
    assert challenger(screening(dict.fromkeys(CHALLENGERS, 0.5) | {"adalora": 0.4})) == "adalora", "best of the worse"


@pytest.mark.parametrize("arm", sorted(set(ARMS) - set(CHALLENGERS) - {"uniform"}))
def test_declared_arms_and_lengths_of_pilots_never_become_the_challenger(arm):
    assert challenger(screening({arm: -0.5, "delta-fisher": -0.01})) == "delta-fisher"


def test_there_is_no_challenger_before_the_screening_is_whole():
    lines = screening({"eva": -0.02})
    assert challenger(lines) == "eva"
    for at, missing in (("eva", 23), ("uniform", 20), (CHALLENGERS[0], 21)):
        for base, task in SETTINGS:
            left = [
                one for one in lines if (one["base"], one["task"], one["arm"], one["seed"]) != (base, task, at, missing)
            ]
            assert len(left) == len(lines) - 1
            with pytest.raises(NotReadyError, match=f"not screened on {base} and {task} yet"):
                challenger(left)
    of_others = [{**one, "budget": 8} for one in lines] + [{**one, "part": "test"} for one in lines]
    with pytest.raises(NotReadyError):
        challenger(of_others)
    without_controls = [one for one in lines if one["arm"] in (*CHALLENGERS, "uniform")]
    assert challenger(without_controls) == "eva", "what cannot be chosen is not waited for"


def test_the_challenger_is_confirmed_after_the_declared_arms():
    setting = ("chatglm2", "medical")
    lines = closed(*setting)
    declared = list(jobs_of("confirm", *setting, lines))
    assert {job.arm for job in declared} == set(CONFIRMED)
    jobs = list(jobs_of("confirm", *setting, lines + screening({"delta-energy": -0.02})))
    assert jobs[: len(declared)] == declared
    further = jobs[len(declared) :]
    wanted = [(seed, budget) for seed in CONFIRM_SEEDS[setting] for budget in BUDGETS]
    assert [(job.seed, job.budget) for job in further] == wanted, "paired with uniform's"
    assert {(job.arm, job.rate, job.part) for job in further} == {("delta-energy", 8e-3, "test")}


def test_what_is_done_is_not_open():
    lines = closed()
    jobs = open_jobs("confirm", "smollm2", "medical", lines)
    done = [line(job.rate, 1.0, job.arm, job.budget, job.seed, job.part) for job in jobs[:20]]
    assert open_jobs("confirm", "smollm2", "medical", lines + done) == jobs[20:]
    other = [{**one, "rate": 1.6e-2} for one in done]
    assert open_jobs("confirm", "smollm2", "medical", lines + other) == jobs, "at a rate that is not the chosen one"


def test_lines_are_read_back_and_a_cut_one_is_passed_over(tmp_path):
    jobs = [Job("smollm2", "medical", "uniform", 4, seed, 1.6e-2 / 3, "test") for seed in (200, 201, 202)]
    text = [line_of(job, loss=1.0, steps=240) for job in jobs]
    path = tmp_path / "lines.jsonl"
    assert read_lines(path) == []
    path.write_text(text[0] + text[1] + text[2][:50])
    assert finished(read_lines(path)) == set(jobs[:2])
    assert read_lines(path)[0]["loss"] == 1.0


def test_all_settings_are_tuned_and_screened_before_one_is_confirmed():
    assert in_order(SETTINGS, STAGES) == [
        *((stage, *setting) for stage in ("rates", "screen") for setting in SETTINGS),
        *((stage, *setting) for setting in SETTINGS for stage in ("confirm", "curve")),
    ]
    assert in_order(SETTINGS[1:2], ("curve", "rates")) == [
        (stage, "chatglm2", "medical") for stage in ("rates", "curve")
    ]


def test_groups_hold_one_stage_of_one_setting_and_never_what_runs():
    sizes = {"smollm2": 18, "chatglm2": 30}
    wanted = in_order(SETTINGS, STAGES)
    groups, running = [], set()
    while group := next_group(wanted, [], running, sizes):
        assert not running & set(group)
        groups.append(group)
        running.update(group)
    rates = {setting: list(jobs_of("rates", *setting, [])) for setting in SETTINGS}
    assert [job for group in groups for job in group] == [job for setting in SETTINGS for job in rates[setting]]
    assert [(g[0].base, g[0].task, len(g)) for g in groups] == [
        ("smollm2", "medical", 18), ("smollm2", "medical", 16),
        ("chatglm2", "medical", 30), ("chatglm2", "medical", 30), ("chatglm2", "medical", 8),
        ("smollm2", "python", 18), ("smollm2", "python", 16),
    ]  # fmt: skip
    assert all(len({(job.base, job.task) for job in group}) == 1 for group in groups)


def test_the_whole_study_runs_to_its_end_in_order(monkeypatch):
    """Three devices, groups that end in any order, losses made up: each job is handed out once and none too early."""
    monkeypatch.setattr(plan_module, "CONFIRM_SEEDS", dict.fromkeys(SETTINGS, (200, 201)))
    monkeypatch.setattr(plan_module, "CURVE_SEEDS", {"smollm2": (200,), "chatglm2": (200, 201)})
    best = {"adalora": 3.2e-2, "random": 1e-3}
    chance = random.Random(0)

    def loss(job):
        away = abs(np.log2(job.rate / best.get(job.arm, 8e-3)))
        return job.seed + 0.1 * away - 0.01 * (job.arm == "eva") - 0.5 * (job.arm == "delta-threshold-20")

    wanted = in_order(SETTINGS, STAGES)
    lines, running, given = [], [], []
    while True:
        while len(running) < 3 and (
            group := next_group(wanted, lines, {job for one in running for job in one}, SIDE_BY_SIDE)
        ):
            assert len(group) <= SIDE_BY_SIDE[group[0].base]
            done = finished(lines)
            for job in group:
                setting = (job.base, job.task)
                if job.part == "test" or job.seed in SCREEN_SEEDS:
                    budgets = (MIDDLE,) if job.part == "development" else BUDGETS
                    arms = TUNED if job.part == "development" else ("uniform",)
                    assert not [a for a in arms for b in budgets if rates_wanted(lines, *setting, a, b)]
                if job.part == "test" and job.arm not in CONFIRMED:
                    whole = {(*s, arm, seed) for s in SETTINGS for arm in ARMS for seed in SCREEN_SEEDS}
                    assert whole <= {(one.base, one.task, one.arm, one.seed) for one in done}
            running.append(group)
            given += group
        if not running:
            break
        ended = running.pop(chance.randrange(len(running)))
        lines += [line_of_job(job, loss(job)) for job in ended]
    assert len(set(given)) == len(given) == len(lines)
    assert all(said.split(": ")[1].startswith("0 jobs") for said in plan(lines, 240).splitlines())
    tuned = {arm: best_rate(lines, "chatglm2", "medical", arm, MIDDLE) for arm in ("adalora", "random", "uniform")}
    assert tuned == {"adalora": 3.2e-2, "random": 1e-3, "uniform": 8e-3}
    tested = {(job.base, job.task, job.arm, job.seed) for job in given if job.part == "test"}
    assert tested == {
        (*setting, arm, seed) for setting in SETTINGS for arm in (*CONFIRMED, "eva") for seed in (200, 201)
    }
    assert len([job for job in given if job.part == "test"]) == 3 * 6 * 3 * 2 + (10 - 3) * (1 + 2 + 1)


def line_of_job(job, loss):
    return line(job.rate, loss, job.arm, job.budget, job.seed, job.part, base=job.base, task=job.task)


def test_the_plan_counts_what_is_open_and_how_long_it_takes():
    said = plan([], 240).splitlines()
    assert len(said) == len(SETTINGS) * len(STAGES)
    assert said[0] == "smollm2 medical rates: 34 jobs, unknown time"
    open_grid = "The grid of rates of uniform at r 4 on smollm2 and medical is open (next 0.004, 0.008)"
    assert said[1].startswith(f"smollm2 medical screen: {open_grid}")
    lines = closed()
    said = plan(lines, 240).splitlines()
    # 60 s for 15 jobs; a confirming seed's three pilots of 80 steps are one more run of 240
    assert said[:4] == [
        "smollm2 medical rates: 0 jobs, about 0 min",
        f"smollm2 medical screen: {4 * len(ARMS)} jobs, about {4 * len(ARMS) * 4 / 60:.0f} min",
        "smollm2 medical confirm: 300 jobs, about 21 min",
        "smollm2 medical curve: 30 jobs, about 2 min",
    ]
    assert said[4] == "chatglm2 medical rates: 68 jobs, unknown time"
    assert "smollm2 medical confirm: 300 jobs, about 41 min" in plan(lines, 480), "pilots stay as long as they are"
    alone = [*lines, line(8e-3, 1.0, seed=99, jobs_in_group=1)]
    assert plan(alone, 240).splitlines() == said, "a job that ran alone tells nothing of a group's"
    lines += screening({})
    lines += closed("smollm2", "python")
    said = plan(lines, 240)
    assert "smollm2 medical confirm: 360 jobs, about 25 min" in said, "the challenger's too"
    assert "smollm2 python confirm: 180 jobs, about 13 min" in said


def test_arms_are_compared_with_the_kind_alone_in_a_family_of_their_own():
    lines = closed(budgets=(MIDDLE,))
    gaps = np.random.default_rng(0).normal(-0.01, 0.002, size=10)
    for seed, gap in zip(CONFIRM_SEEDS["smollm2", "medical"][:10], gaps, strict=True):
        for arm, shift in (("type-alone", 0.0), ("delta-threshold", gap), ("effective-rank", -gap)):
            lines.append(line(8e-3, 1.0 + seed + shift, arm, seed=seed, part="test", device="card"))
    found = {row["arm"]: row for row in against_type(lines)}
    assert found["delta-threshold"]["mean"] == pytest.approx(gaps.mean())
    assert found["effective-rank"]["mean"] == pytest.approx(-gaps.mean())
    p = stats.ttest_1samp(gaps, 0).pvalue
    assert [row["holm_p"] for row in found.values()] == pytest.approx([2 * p, 2 * p])
    (cost,) = costs(lines)
    assert (cost["seconds"], cost["factor"]) == (4.0, 2.0), "60 s for 15 jobs; 3 pilots of 80 steps beside 240"


def test_what_suggest_rank_says_of_a_gain_is_what_the_lines_say():
    lines = read_lines(Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "ranks.jsonl")
    table = table_rows(lines)
    assert list(study_gains.SETTINGS) == list(SETTINGS)
    for name, gains in study_gains.GAINS.items():
        arm = {"type:delta-threshold": "type-alone", "delta-adamw": "delta-preconditioned"}.get(name, name)
        for setting, gain in zip(study_gains.SETTINGS, gains, strict=True):
            found = [row for row in table if (row["base"], row["task"], row["arm"]) == (*setting, arm)]
            gained = sorted(-row["paired"].mean for row in found)
            assert len(found) == 3
            assert (gain.least, gain.most) == pytest.approx((gained[0], gained[-1]), abs=6e-4), (name, setting)
            assert gain.sure == all(row["holm_p"] < 0.01 for row in found), (name, setting)


def test_the_table_reads_the_chosen_rate_and_the_test_part():
    where = ("smollm2", "medical", "uniform", 4)
    assert losses_of([line(8e-3, 1.0, seed=200, part="test")], *where) == {}, "nothing is tuned yet"
    lines = [line(4e-3, 1.2), line(8e-3, 1.1), line(4e-3, 9.0, seed=200, part="test"), line(8e-3, 7.0, seed=201)]
    assert losses_of(lines, *where) == {}, "a rate that tuning has left"
    lines += [line(8e-3, 1.0, seed=200, part="test"), line(8e-3, 2.0, seed=200, part="test", task="python")]
    assert losses_of(lines, *where) == {200: 1.0}


def confirmed(arms, seeds=tuple(range(200, 206)), budget=4, **more):
    """Lines of the test part with gaps drawn around arm -> mean, and these gaps by arm."""
    chance = np.random.default_rng(len(seeds) + budget)
    gaps = {arm: chance.normal(mean, 0.004, size=len(seeds)) * (arm != "uniform") for arm, mean in arms.items()}
    lines = [
        line(8e-3, 1.0 + seed / 1000 + gap, arm, budget, seed, "test", device="card", **more)
        for arm, own in gaps.items()
        for seed, gap in zip(seeds, own, strict=True)
    ]
    return lines, gaps


def test_the_challengers_rows_are_corrected_with_all_others():
    lines = closed(budgets=(MIDDLE,)) + closed("chatglm2", budgets=(MIDDLE,)) + screening({"eva": -0.02})
    arms = {"uniform": 0.0, "delta-threshold": -0.006, "eva": -0.01}
    one, gaps = confirmed(arms)
    two, others = confirmed(arms, seeds=tuple(range(200, 210)), base="chatglm2")
    table = table_rows(lines + one + two)
    assert [(row["base"], row["arm"]) for row in table] == [
        (base, arm) for base in ("smollm2", "chatglm2") for arm in ("delta-threshold", "eva")
    ]
    own = [gaps["delta-threshold"], gaps["eva"], others["delta-threshold"], others["eva"]]
    p = [stats.ttest_1samp(gap, 0).pvalue for gap in own]
    assert [row["paired"].p for row in table] == pytest.approx(p)
    assert [row["paired"].mean for row in table] == pytest.approx([gap.mean() for gap in own])
    assert [row["paired"].seeds for row in table] == [6, 6, 10, 10]
    assert [row["holm_p"] for row in table] == pytest.approx(holm(p))
    shown = [text.split(" | ") for text in markdown(lines + one + two).splitlines()]
    (eva,) = [cells for cells in shown if cells[0] == "| chatglm2, medical" and cells[2:3] == ["eva"]]
    assert eva[3].startswith(f"{others['eva'].mean():+.4f} (")
    assert eva[4] == "10"


def test_a_gain_is_told_in_parameters():
    assert saving(EqualLoss(5.0, False), 4) == "5.0 (-20%)"
    assert saving(EqualLoss(3.2, False), 4) == "3.2 (+25%)"
    assert saving(EqualLoss(16.0, True), 8) == "16.0 (-50%, end of curve)"


def test_what_a_gain_is_worth_is_read_off_the_curves_shared_seeds():
    """uniform falls by 0.01 a doubling on the curve's seeds; its seeds beyond them would say something else."""
    lines = closed()
    seeds = (200, 201, 202)
    for rank in (1, 2, 4, 8, 16):
        lines += [line(8e-3, 1.0 + s - 0.01 * np.log2(rank), "uniform", rank, s, "test") for s in seeds]
    lines += [line(8e-3, 50.0 + s, "uniform", 4, s, "test") for s in (203, 204)]
    uniform = {one["seed"]: one["loss"] for one in lines if one["part"] == "test" and one["budget"] == 4}
    jitter = {200: 1e-5, 201: -1e-5, 202: 0.0, 203: 1e-5, 204: -1e-5}
    for arm, gap in (("delta-threshold", -0.01), ("effective-rank", 0.005), ("random", 0.07)):
        lines += [line(8e-3, uniform[s] + gap + jitter[s], arm, 4, s, "test", device="card") for s in uniform]
    worth = {row["arm"]: row["worth"] for row in table_rows(lines)}
    assert worth["delta-threshold"].rank == pytest.approx(8, rel=1e-3)
    assert worth["effective-rank"].rank == pytest.approx(4 / 2**0.5, rel=1e-3)
    assert (worth["random"].rank, worth["random"].at_end) == (1, True)
    ends = {text.split(" | ")[2]: text.split(" | ")[-1] for text in markdown(lines).splitlines() if "r 4 (" in text}
    assert ends == {
        "delta-threshold": "8.0 (-50%) |",
        "effective-rank": "2.8 (+41%) |",
        "random": "1.0 (+300%, end of curve) |",
    }


def test_the_screening_is_printed_apart_from_the_evidence():
    lines = [line(4e-3, 1.2), line(8e-3, 1.1)]
    assert "screened" not in markdown(lines)
    for seed, gap in ((20, -0.02), (21, -0.04), (22, -0.03)):
        lines += [line(8e-3, seed, "uniform", seed=seed), line(8e-3, seed + gap, "adalora", seed=seed)]
    lines += [line(8e-3, 20.5, "eva", seed=20), line(8e-3, 9.0, "adalora", seed=23)]
    (eva, adalora) = sorted(screened(lines), key=lambda row: row["seeds"])
    assert (adalora["arm"], adalora["seeds"]) == ("adalora", 3), "a seed without its uniform pairs with nothing"
    assert adalora["mean"] == pytest.approx(-0.03)
    assert adalora["error"] == pytest.approx(stats.sem([-0.02, -0.04, -0.03]))
    assert (eva["mean"], eva["seeds"]) == (0.5, 1)
    assert np.isnan(eva["error"])
    text = markdown(lines).splitlines()
    assert "| smollm2, medical | adalora | -0.0300 (0.0058) | 3 |" in text
    assert "| smollm2, medical | eva | +0.5000 (nan) | 1 |" in text
    head = next(number for number, row in enumerate(text) if "screened" in row)
    assert text[head - 1] == "", "a table of its own"
    assert all("adalora" not in row for row in text[:head])


def test_the_documents_show_the_tables_of_the_committed_lines():
    root = Path(__file__).resolve().parents[2]
    results = root / "benchmarks" / "results"
    shown = (root / "docs" / "ranks_tables.md").read_text("utf-8")
    names = ("ranks", "controls", "rivals", "moments")
    assert shown == document(*(read_lines(results / f"{name}.jsonl") for name in names))
    assert "| smollm2, medical | r 4" in shown


def test_each_figure_of_the_document_stands_in_the_line_that_it_names():
    docs = Path(__file__).resolve().parents[2] / "docs"
    rows = [[cell.strip() for cell in line.split("|")] for line in (docs / "ranks_tables.md").read_text().splitlines()]
    named = (docs / "ranks.md").read_text().partition("## Where each figure stands")[2]
    claims = [line[2:] for line in named.splitlines() if line.startswith("- ")]
    assert len(claims) > 20
    for claim in claims:
        values, _, where = claim.partition("`: ")
        keys = [key.partition(" (less")[0].strip() for key in where.split(";") if " of the portfolio" not in key]
        for value in values.strip("`").split("`, `"):
            assert any(value in row and set(keys) <= set(row) for row in rows), claim


def test_an_arm_that_diverged_is_no_challenger():
    lines = screening({"eva": -0.02})
    for line in lines:
        if line["arm"] == "delta-energy" and line["seed"] == 20:
            line["loss"] = float("nan")
    assert challenger(lines) == "eva"


def test_a_cut_line_does_not_swallow_the_next(tmp_path):
    jobs = [Job("smollm2", "medical", "uniform", 4, seed, 4e-3, "test") for seed in (1, 2, 3)]
    out = tmp_path / "lines.jsonl"
    out.write_text(line_of(jobs[0], loss=1.0) + line_of(jobs[1], loss=1.0)[:40])
    append_lines(out, line_of(jobs[1], loss=1.0) + line_of(jobs[2], loss=1.0))
    assert [line["seed"] for line in read_lines(out)] == [1, 2, 3]
