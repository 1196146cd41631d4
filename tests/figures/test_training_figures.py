"""Curves of training runs, from logs of today and of 2023."""

import json
import math
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from glmspectra.errors import RequestError, StoreError
from glmspectra.figures import read_training, write_training_curves, write_training_report
from glmspectra.figures.svg import style, training
from tests.figures.synthetic_run import training_folder

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(autouse=True)
def _one_style():
    with style.styled():
        yield


def curve(name: str) -> training.Curve:
    return next(curve for curve in training.CURVES if curve.name == name)


def drawn(figure) -> dict[str, np.ndarray]:
    return {line.get_gid(): line.get_xydata() for ax in figure.axes for line in ax.lines if line.get_gid()}


def test_perplexity_is_exp_of_the_evaluation_loss(tmp_path):
    run = read_training(training_folder(tmp_path / "run"))
    evaluated = run.history.dropna(subset=["eval_loss"])
    assert len(evaluated) == 5
    points = drawn(training.draw_curve([run], curve("eval_perplexity")))["eval_perplexity-run"]
    assert points[:, 1] == pytest.approx(np.exp(evaluated["eval_loss"].to_numpy()))
    assert list(points[:, 0]) == [20, 40, 60, 80, 100]


def test_raw_and_smoothed_loss(tmp_path):
    run = read_training(training_folder(tmp_path / "run"))
    lines = drawn(training.draw_curve([run], curve("train_loss")))
    raw, smoothed = lines["train_loss-raw-run"], lines["train_loss-run"]
    assert raw[:, 1] == pytest.approx([2 + math.exp(-step / 40) for step in range(10, 101, 10)])
    assert smoothed[0, 1] == pytest.approx(raw[0, 1])
    assert np.all(smoothed[1:, 1] > raw[1:, 1])  # an average of a falling curve lags behind it


def test_every_curve_of_a_run_of_today_with_its_unit(tmp_path):
    run = read_training(training_folder(tmp_path / "run"))
    written = {
        "train_loss": ("Training loss", "loss (nats per token)"),
        "eval_loss": ("Evaluation loss", "loss (nats per token)"),
        "eval_perplexity": ("Evaluation perplexity", "perplexity (exp of loss, no unit)"),
        "learning_rate": ("Learning rate", "learning rate (no unit)"),
        "grad_norm": ("Gradient norm", "gradient norm (no unit)"),
        "tokens_per_second": ("Speed", "speed (tokens / s)"),
    }
    assert {one.name for one in training.CURVES} == set(written)
    for one in training.CURVES:
        figure = training.draw_curve([run], one)
        root = ElementTree.fromstring(style.svg_text(figure))
        words = {"".join(node.itertext()).strip() for node in root.iter(f"{SVG}text")}
        assert {*written[one.name], "step (optimizer updates)"} <= words


def test_several_runs_share_their_axes(tmp_path):
    runs = [read_training(training_folder(tmp_path / name, loss=loss)) for name, loss in (("甲", 2.0), ("b", 3.0))]
    figure = training.draw_curve(runs, curve("eval_loss"))
    lines = [line for line in figure.axes[0].lines if line.get_gid()]
    assert len(lines) == len({(line.get_color(), line.get_marker()) for line in lines}) == 2
    root = ElementTree.fromstring(style.svg_text(figure))
    assert {"甲", "b"} <= {"".join(node.itertext()).strip() for node in root.iter(f"{SVG}text")}


def test_a_curve_that_nobody_logged_is_left_out(tmp_path):
    folder = tmp_path / "bare"
    folder.mkdir()
    log = [{"step": 1, "loss": 2.0, "epoch": 0.1}, {"step": 2, "loss": 1.5, "epoch": 0.2}]
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    assert training.draw_curve([read_training(folder)], curve("grad_norm")) is None
    page = write_training_report([folder], tmp_path / "out", svg=True).read_text(encoding="utf-8")
    assert '"curves":{"loss":' in page
    assert '"grad_norm":{' not in page
    assert [path.name for path in (tmp_path / "out").glob("*.svg")] == ["curve_train_loss.svg"]


def test_a_state_is_found_in_the_last_checkpoint(tmp_path):
    for step in (9, 100):
        training_folder(tmp_path / "run" / f"checkpoint-{step}", steps=step if step > 9 else 10)
    (tmp_path / "run" / "checkpoint-best").mkdir()
    (tmp_path / "run" / "checkpoint-best" / "trainer_state.json").write_text("{}")
    run = read_training(tmp_path / "run")
    assert run.name == "run"
    assert run.history["step"].max() == 100


def test_pickles_of_a_training_folder_are_not_opened(tmp_path, monkeypatch):
    import pickle

    import torch

    folder = training_folder(tmp_path / "run")

    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    (folder / "training_args.bin").write_bytes(pickle.dumps(Trap()))

    def refuse(*_, **__):
        raise AssertionError("a pickle was opened")

    monkeypatch.setattr(pickle, "load", refuse)
    monkeypatch.setattr(pickle, "loads", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    assert len(write_training_curves(folder)) == 6
    assert not (tmp_path / "sprung").exists()


def test_what_is_no_training_folder_is_one_sentence(tmp_path):
    with pytest.raises(
        RequestError, match=r"holds no trainer_state\.json, nor does a checkpoint-N in it: name the folder"
    ):
        read_training(tmp_path)
    (tmp_path / "trainer_state.json").write_text('{"log_history": 3}')
    with pytest.raises(StoreError, match=r"trainer_state\.json: log_history: input should be a valid list \(found 3\)"):
        read_training(tmp_path)
    (tmp_path / "trainer_state.json").write_text('{"log_hist')
    with pytest.raises(StoreError, match=r"trainer_state\.json is not JSON \(line 1, column 2"):
        read_training(tmp_path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"log_history": [{"step": "1"}]}', r"log_history\.0\.step: input should be a valid integer"),
        ('{"log_history": [{"step": 1, "loss": true}]}', r"log_history\.0\.loss: input should be a valid number"),
        ('{"log_history": [{"step": -1}]}', r"log_history\.0\.step: input should be greater than or equal to 0"),
        ('{"log_history": [{"step": 1, "loss": 1' + "0" * 5000 + "}]}", "more than 4,300 digits"),
        ("[" * 100_000, "nested too deeply"),
        ("[]", "holds no JSON object"),
    ],
)
def test_wrong_types_in_a_state_are_named(tmp_path, text, sentence):
    (tmp_path / "trainer_state.json").write_text(text)
    with pytest.raises(StoreError, match=sentence):
        read_training(tmp_path)


def test_answers_of_the_last_evaluation_stand_on_the_page(tmp_path):
    folder = training_folder(tmp_path / "run")
    lines = [
        {"step": step, "context": f"头晕怎么办{index}", "reference": "多休息", "answer": f"第{step}步的回答{index}"}
        for step in (5, 10)
        for index in range(2)
    ]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (folder / "eval_samples.jsonl").write_text(text + '{"step": 15, "con', encoding="utf-8")
    page = write_training_report([folder], tmp_path / "out").read_text(encoding="utf-8")
    assert "第10步的回答1" in page
    assert "第5步的回答1" not in page


def test_nan_in_a_log_is_a_gap(tmp_path):
    text = '{"log_history": [{"step": 1, "loss": NaN}, {"step": 2, "loss": 1.0}, {"step": 3, "eval_loss": 1e9}]}'
    (tmp_path / "trainer_state.json").write_text(text)
    run = read_training(tmp_path)
    assert drawn(training.draw_curve([run], curve("train_loss")))[f"train_loss-{run.name}"].tolist() == [[2, 1]]
    assert not run.has("eval_perplexity")


def test_ranks_over_time(tmp_path):
    folder = training_folder(tmp_path / "ada", ranks=True)
    with (folder / "rank_history.jsonl").open("a") as file:
        file.write(
            '{"step": 100, "ranks": {"base_model.model.transformer.encoder.layers.0.dense": 1}}\n{"step": 110, "ra'
        )
    run = read_training(folder)
    assert len(run.ranks) == 11 * 6  # the half line is left out, the repeated step counts once
    assert run.ranks.query("step == 100 and matrix == 'dense' and layer == 0")["rank"].tolist() == [1]
    figure = training.draw_rank_history(run)
    meshes = {
        ax.get_title(loc="left"): ax.collections[0]
        for ax in figure.axes
        if ax.get_title(loc="left") in ("dense", "query_key_value")
    }
    cells = np.asarray(meshes["query_key_value"].get_array()).reshape(3, 11)
    assert cells[1].tolist() == [8 - 1 - step // 20 for step in range(0, 101, 10)]
    total = drawn(figure)["rank-total"]
    assert total[0].tolist() == [0, 2 * (8 + 7 + 6)]
    lines = (folder / "rank_history.jsonl").read_text().splitlines()
    (folder / "rank_history.jsonl").write_text("\n".join(['{"step": 1}', *lines]))
    with pytest.raises(StoreError, match=r"rank_history\.jsonl, line 1: ranks: field required"):
        read_training(folder)


def test_two_runs_of_one_name_stay_apart(tmp_path):
    folders = [training_folder(tmp_path / place / "run") for place in ("x", "y")]
    page = write_training_report(folders, tmp_path / "out").read_text(encoding="utf-8")
    assert "run (2)" in page
    with pytest.raises(RequestError, match="no training folder was named"):
        write_training_report([], tmp_path / "out")


@pytest.mark.shared
def test_the_original_studys_log_of_2023(shared, tmp_path):
    folder = shared / "reference" / "study_runs" / "qlora"
    run = read_training(folder)
    evaluated = run.history.dropna(subset=["eval_loss"]).set_index("step")
    for step, loss in ((100, 2.3215), (500, 2.1059), (1000, 2.0623), (2000, 2.0319)):
        assert evaluated.loc[step, "eval_loss"] == pytest.approx(loss, abs=5e-5)
        assert evaluated.loc[step, "eval_perplexity"] == pytest.approx(math.exp(evaluated.loc[step, "eval_loss"]))
    assert evaluated.loc[100, "eval_perplexity"] == pytest.approx(10.19, abs=0.01)
    assert evaluated.loc[100, "logged_perplexity"] == pytest.approx(2 ** evaluated.loc[100, "eval_loss"], rel=1e-6)
    assert run.perplexity_disagrees
    page = write_training_report([folder], tmp_path, svg=True).read_text(encoding="utf-8")
    assert "The log of qlora holds a perplexity that is not exp of its loss" in page
    assert {path.name for path in tmp_path.glob("*.svg")} == {
        "curve_train_loss.svg",
        "curve_eval_loss.svg",
        "curve_eval_perplexity.svg",
        "curve_learning_rate.svg",
    }
