"""The loop: resumable in every stage, refusing what does not belong together, honest in its last sentence."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from glmspectra.errors import ConfigError, RequestError, StoreError
from glmspectra.figures.findings import Evidence, find
from glmspectra.loop.options import LoopOptions
from glmspectra.loop.run import run_loop
from glmspectra.loop.stages import STAGES
from glmspectra.loop.state import LoopState
from glmspectra.loop.story import outcome, verdict

ROOT = Path(__file__).resolve().parents[2]


def killed_in_each_stage(whole: Path, broken: Path) -> dict:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "ARROW_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.loop.loop_child", str(whole), str(broken)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return {**json.loads(done.stdout.splitlines()[-1]), "errors": done.stderr[-3000:]}


def options(folder: Path, **more) -> LoopOptions:
    args = folder / "args_file"
    args.mkdir(exist_ok=True)
    (args / "train_args.json").write_text("{}")
    return LoopOptions(out=folder / "out", model=Path("m"), args=args, **more)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_killed_in_each_stage_in_turn_it_ends_with_the_same_ranks_and_weights(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    found = killed_in_each_stage(whole, broken)
    first, *killed, last = found["statuses"]
    assert (first, last) == (0, 0), found["errors"]
    assert dict(zip(STAGES, killed, strict=True)) == dict.fromkeys(STAGES, -signal.SIGKILL), "killed while under way"
    assert found["kept"] == [list(STAGES)[:number] for number in range(len(STAGES))]
    for name in ("ranks.json", "ranks_from_base.json", "ranks_uniform.json", "ranks_next.json"):
        one, other = (json.loads((out / "args_file" / name).read_text()) for out in (whole, broken))
        assert one["ranks"] == other["ranks"], name
    for name in ("suggested", "uniform"):
        one, other = (
            load_file(out / "training" / name / "final_adapter" / "adapter_model.safetensors")
            for out in (whole, broken)
        )
        assert one.keys() == other.keys()
        assert all((one[key] == other[key]).all() for key in one), name
    results = [json.loads((out / "loop.json").read_text())["stages"]["evaluate"]["result"] for out in (whole, broken)]
    assert results[0]["suggested"] == results[1]["suggested"]
    assert len(list((broken / "reports").glob("*/index.html"))) == 4, "the page of the loop, and a report of each run"
    ranks = json.loads((whole / "args_file" / "ranks.json").read_text())
    trained = json.loads((whole / "training" / "suggested" / "run.json").read_text())["finished"]
    assert trained["trainable_parameters"] == ranks["budget"]["used"]


def test_finished_stages_are_remembered_and_other_settings_refused(tmp_path):
    first = options(tmp_path)
    LoopState.open(first).finish("svd", {"tables": "t"}, 1.0)
    assert LoopState.open(first).result("svd") == {"tables": "t"}
    with pytest.raises(RequestError, match=r"holds a loop with another pilot_steps \(80, now 40\): .*--out.*--fresh"):
        LoopState.open(options(tmp_path, pilot_steps=40))
    (tmp_path / "args_file" / "train_args.json").write_text('{"learning_rate": 1e-3}')
    with pytest.raises(RequestError, match="another settings"):
        LoopState.open(LoopOptions(out=first.out, model=Path("m"), args=first.args))


def test_fresh_drops_trainings_that_may_be_of_other_settings(tmp_path):
    asked = options(tmp_path)
    LoopState.open(asked).finish("svd", {}, 1.0)
    (asked.out / "training" / "suggested").mkdir(parents=True)
    (asked.out / "param_matrix").mkdir()
    assert not LoopState.open(asked, fresh=True).finished("svd")
    assert not (asked.out / "training").exists()
    assert (asked.out / "param_matrix").is_dir()


def test_wrong_settings_are_said_before_anything_is_measured(tmp_path):
    with pytest.raises(ConfigError, match="learning_rat"):
        run_loop(options(tmp_path, overrides=("train.learning_rat=1e-3",)))
    assert not (tmp_path / "out").exists(), "the right settings may follow in the same folder"


def test_a_broken_state_file_is_one_sentence(tmp_path):
    asked = options(tmp_path)
    asked.out.mkdir()
    (asked.out / "loop.json").write_text('{"options": {')
    with pytest.raises(StoreError, match=r"loop\.json is not JSON \(.*\).*: remove it, or name another folder"):
        LoopState.open(asked)


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(-0.2, -0.1, "suggested ranks did better"), (0.1, 0.2, "uniform"), (-0.1, 0.1, "No difference")],
)
def test_the_verdict_says_what_the_interval_says(low, high, words):
    gap = {"mean": (low + high) / 2, "low": low, "high": high, "rows": 9}
    found = {"base": {"loss": 2.0}, "suggested": {"loss": 1.0}, "uniform": {"loss": 1.0}}
    answer = outcome({"evaluate": {**found, "suggested_minus_uniform": gap}, "train": {}, "control": {}})
    sentence = find(Evidence(scores=answer.scores))[0].words.en
    assert words in sentence.partition(":")[0]
    assert "several seeds" in sentence
    assert list(answer.scores.losses) == ["base", "uniform", "suggested"]


def test_without_a_control_nothing_is_claimed():
    answer = outcome({"evaluate": {"base": {"loss": 2.0}}, "train": {}, "control": {}})
    assert find(Evidence(scores=answer.scores))[0].rule == "nothing"
    assert "nothing is said" in verdict({"evaluate": {"base": {"loss": 2.0}}, "train": {}, "control": {}})


@pytest.mark.parametrize(
    ("wrong", "words"), [({"pilot_steps": 1}, "--pilot-steps is 1"), ({"pilot_seeds": 0}, "--pilot-seeds is 0")]
)
def test_wrong_requests_are_refused(tmp_path, wrong, words):
    with pytest.raises(RequestError, match=words):
        options(tmp_path, **wrong)
