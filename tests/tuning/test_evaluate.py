"""Evaluation, text scores, batch inference, the search for a learning rate, and their commands."""

import html
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load, save
from scipy import stats
from transformers import AutoModelForCausalLM

from glmspectra.cli.main import main
from glmspectra.errors import CheckpointError, DataError, RequestError
from glmspectra.language import text
from glmspectra.tuning.data.read import read_questions
from glmspectra.tuning.data.rows import Columns
from glmspectra.tuning.inference.batch import infer, load_for_inference, prompt_ids
from glmspectra.tuning.inference.evaluation import evaluate, paired_interval, write_evaluation
from glmspectra.tuning.inference.generation import decode, split_prompt
from glmspectra.tuning.inference.text_scores import text_scores
from glmspectra.tuning.model.saved_adapter import load_adapter
from glmspectra.tuning.settings.load import load_settings
from glmspectra.tuning.training.inputs import load_inputs
from glmspectra.tuning.training.learning_rate import choose_rate, find_learning_rate
from glmspectra.tuning.training.run import train
from tests.tuning.tiny_run import make_run, rows, tokenizer, write_args


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, model, data):
    root = tmp_path_factory.mktemp("trained")
    targets = ["query_key_value", "dense_h_to_4h", "dense_4h_to_h"]
    run = make_run(
        root, model, data, lora={"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": targets},
        train={"max_steps": 60, "learning_rate": 2e-2, "per_device_train_batch_size": 16, "save_strategy": "no"},
    )  # fmt: skip
    train(run)
    return run.settings.final_adapter


def test_scores_are_by_character():
    # Longest common subsequence 吃药 of 吃药休息 (4) and 吃药 (2): precision 1, recall 1/2, F 2/3.
    found = text_scores(["吃药"], ["吃药休息"])
    assert found["rouge_l"] == pytest.approx(200 / 3)
    assert text_scores(["多喝水，好好休息。"], ["多喝水，好好休息。"]) == pytest.approx({"rouge_l": 100, "bleu": 100})
    assert text_scores(["完全不同"], ["另外的话"])["rouge_l"] == 0
    # Corpus BLEU of 4 characters of 5 in order: precisions 4/4 3/3 2/2 1/1, brevity exp(1 - 5/4).
    assert text_scores(["头痛吃药"], ["头痛吃药。"])["bleu"] == pytest.approx(100 * np.exp(1 - 5 / 4))


def test_paired_interval_is_students():
    before, after = np.array([3.0, 2.0, 4.0, 3.0]), np.array([2.0, 1.5, 3.5, 2.0])
    found = paired_interval(before, after)
    low, high = stats.ttest_rel(after, before).confidence_interval(0.95)
    assert (found["mean"], found["rows"]) == (-0.75, 4)
    assert (found["low"], found["high"]) == (pytest.approx(low), pytest.approx(high))


def test_the_prompt_is_what_stands_before_the_last_answer():
    ids, labels = [5, 6, 7, 8, 9, 10, 11], [-100, 6, -100, -100, 9, 10, -100]
    assert split_prompt(ids, labels) == ([5, 6, 7, 8], [9, 10])
    small = tokenizer()
    assert decode(small, [*small.encode("abc"), 1, 5, 6]) == "abc"


def test_evaluation_compares_with_and_without(tmp_path, model, data, adapter):
    settings = load_settings(write_args(tmp_path / "args", model, data))
    found = evaluate(settings, adapter, device="cpu", samples=3, scored=8, max_new_tokens=16, split="train")
    assert found.tuned["loss"] < found.base["loss"] - 1
    assert found.difference["high"] < 0
    assert found.tuned["rouge_l"] > found.base["rouge_l"] + 20
    assert [set(sample) for sample in found.samples] == [{"context", "reference", "base", "tuned"}] * 3
    expected = json.loads((data / "train.jsonl").read_text().splitlines()[0])
    assert found.samples[0]["context"] == expected["context"]
    assert found.samples[0]["reference"] == expected["target"]
    write_evaluation(found, tmp_path / "out")
    assert json.loads((tmp_path / "out/evaluation.json").read_text())["tuned"] == found.tuned
    assert len((tmp_path / "out/samples.jsonl").read_text().splitlines()) == 3
    same = text("evaluation-same")
    assert same not in found.lines()
    assert same in replace(found, row_losses=dict.fromkeys(("base", "tuned"), found.row_losses["base"])).lines()
    # Without the adapter's file form the message names where one is.
    with pytest.raises(RequestError, match=r"there is no adapter_config\.json; .* is one"):
        load_adapter(None, adapter.parent)


def copied(folder, target, **files):
    """A copy of `folder` with the text of some files changed, or with a file left out (None)."""
    shutil.copytree(folder, target)
    for name, change in files.items():
        path = next(target.glob(f"{name}.*"))
        path.unlink() if change is None else path.write_bytes(change(path.read_bytes()))
    return target


def edited(**values):
    return lambda raw: json.dumps(json.loads(raw) | values).encode()


def half(raw):
    return raw[: len(raw) // 2]


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"config": edited(num_layers=3)}, "config.json says num_layers 3 and the files hold 2 layers"),
        ({"config": edited(hidden_size=32)}, "weights have other shapes than its config.json asks for"),
        ({"model": half}, "model.safetensors is truncated: its header promises 332160 bytes and the file has 166080"),
        ({"model": None}, "holds only config.json, .*: give a folder that holds safetensors, .bin or GGUF files"),
        ({"config": half}, r"config\.json is not JSON"),
    ],
)
def test_a_folder_that_does_not_hold_the_whole_model_is_refused(tmp_path, model, files, sentence):
    """Also one that transformers would load with layers drawn at random."""
    with pytest.raises(CheckpointError, match=sentence):
        load_for_inference(copied(model, tmp_path / "damaged", **files), device="cpu")


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"adapter_model": None}, "neither adapter_model.safetensors nor adapter_model.bin"),
        ({"adapter_model": half}, "cannot be put on this base: .*not fully covered"),
        ({"adapter_config": half}, r"adapter_config\.json is not JSON"),
        ({"adapter_config": edited(r=3)}, "cannot be put on this base: .*size mismatch for"),
        ({"adapter_config": edited(target_modules=["dense"])}, "Found missing adapter keys"),
        (
            {"adapter_config": edited(target_modules=["query_key_value"])},
            r"changes 8 tensors that this base has no place",
        ),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(tmp_path, model, adapter, files, sentence):
    """Also where PEFT would leave out what has no place, or leave as it starts what is not in the file."""
    with pytest.raises(CheckpointError, match=sentence):
        load_adapter(load_for_inference(model, device="cpu").model, copied(adapter, tmp_path / "adapter", **files))


def with_tensor(name):
    def change(raw):
        tensors = load(raw)
        return save(tensors | {name: torch.ones(4)}, metadata={"format": "pt"})

    return change


def test_a_tensor_that_the_model_does_not_take_is_an_error_and_a_computed_table_is_not(tmp_path, model):
    folder = copied(model, tmp_path / "more", model=with_tensor("transformer.encoder.layers.0.mlp.gate.weight"))
    with pytest.raises(CheckpointError, match=r"no place for 1 tensors of its files, .*mlp\.gate\.weight among"):
        load_for_inference(folder, device="cpu")
    load_for_inference(
        copied(model, tmp_path / "old", model=with_tensor("transformer.rotary_pos_emb.inv_freq")), device="cpu"
    )


PARTS = {
    "bias": {"target_modules": ["query_key_value"], "bias": "all"},
    "head": {"target_modules": ["query_key_value"], "modules_to_save": ["output_layer"]},
    "lora of the head": {"target_modules": ["query_key_value", "output_layer"]},
    "pissa": {"target_modules": ["query_key_value"], "init_lora_weights": "pissa"},
    "embedding": {"target_modules": ["query_key_value", "word_embeddings"]},
    "dora": {"target_modules": ["query_key_value"], "use_dora": True},
}


@pytest.mark.parametrize("part", PARTS)
def test_the_base_is_measured_as_it_is_and_the_adapter_as_peft_has_it(tmp_path, model, data, part):
    """Against plain transformers and the PEFT model that was saved, row by row; every trained tensor is far from its
    start."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    settings = load_settings(write_args(tmp_path / "args", model, data))
    rows_of = load_inputs(settings, torch.device("cpu")).data.valid

    def losses(model):
        found = []
        for row in rows_of:
            ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])[1:]
            with torch.no_grad():
                logits = model(input_ids=ids).logits[0, :-1]
            kept = labels != -100
            found.append(float(torch.nn.functional.cross_entropy(logits[kept], labels[kept])))
        return np.array(found)

    alone = losses(base)
    live = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **PARTS[part])).eval()
    with torch.no_grad():
        for parameter in live.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    tuned = losses(live)
    live.save_pretrained(tmp_path / "adapter")
    found = evaluate(settings, tmp_path / "adapter", device="cpu")
    assert found.row_losses["base"] == pytest.approx(alone, abs=1e-5)
    assert found.row_losses["tuned"] == pytest.approx(tuned, abs=1e-4)
    assert abs(tuned - alone).max() > 0.1
    line = found.lines()[-1]
    assert f"row by row: {np.mean(tuned - alone):+.3f}"[:-1] in line
    assert "nats a token (mean over 8 rows, each counting alike" in line


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_a_base_rounded_to_4_bits_is_said(tmp_path, model, data, method):
    found = evaluate(load_settings(write_args(tmp_path / "args", model, data, {"method": method})), device="cpu")
    assert found.as_dict()["four_bit"] == (None if method == "lora" else "nf4")
    assert any("rounded to 4 bits (nf4)" in line for line in found.lines()) == (method == "qlora")


def test_inference_answers_a_file_in_order(tmp_path, model, adapter):
    questions = [{"context": row["context"], "id": index} for index, row in enumerate(rows(32)[:7])]
    source = tmp_path / "questions.jsonl"
    source.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in questions))
    asked, lines = read_questions(source, Columns())
    assert lines == ["questions.jsonl: 7 rows of context", "questions.jsonl: columns that are not read: id (7 rows)"]
    loaded = load_for_inference(model, adapter, "cpu", "plain", 64)
    assert prompt_ids(loaded.encoder, "abc?") == loaded.tokenizer.encode("abc?\n")
    assert infer(loaded, asked, tmp_path / "answers.jsonl", max_new_tokens=16, batch_size=3) == "answer"
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [row["id"] for row in answers] == list(range(7))
    # In batches of three with padding as one by one.
    infer(loaded, asked, tmp_path / "single.jsonl", max_new_tokens=16, batch_size=1)
    single = [json.loads(line) for line in (tmp_path / "single.jsonl").read_text().splitlines()]
    assert [row["answer"] for row in answers] == [row["answer"] for row in single]
    assert any(row["answer"] for row in answers)


@pytest.mark.parametrize(
    ("line", "message"),
    [(b'{"context": "a"', "line 2: the line is not JSON"), (b'{"text": "a"}', "line 2: no question is recognized"),
     (b"\xff\xfe", "line 2: bad UTF-8 at byte 1"), (b'{"context": " "}', "line 2: no question")],
)  # fmt: skip
def test_questions_that_cannot_be_used_are_named_by_line(tmp_path, line, message):
    path = tmp_path / "questions.jsonl"
    path.write_bytes(b'{"context": "ok"}\n' + line + b"\n")
    with pytest.raises(DataError, match=message):
        read_questions(path, Columns())


def test_the_rate_advised_is_no_higher_than_a_third_of_one_that_diverged():
    found = choose_rate(30, "rows", 4.0, [1e-4, 3e-4, 1e-3, 3e-3], [3.5, 3.0, 2.5, None])
    assert (found.best, found.advised) == (1e-3, 1e-3)
    found = choose_rate(30, "rows", 4.0, [1e-4, 3e-4, 1e-3, 2e-3], [3.5, 3.0, 2.5, None])
    assert (found.best, found.advised) == (1e-3, 3e-4)
    with pytest.raises(RequestError, match="every learning rate from 1e-04 to 1e-03 diverged"):
        choose_rate(30, "rows", 4.0, [1e-4, 1e-3], [None, None])


def test_rates_are_compared_from_one_start(tmp_path, model, data):
    settings = load_settings(write_args(tmp_path / "args", model, data, lora={"lora_dropout": 0.0}))
    found = find_learning_rate(settings, "cpu", 6, rates=(1e-4, 1e-2, 1e-4))
    assert found.losses[0] == found.losses[2]  # the same start, the same order of rows
    assert found.best == 1e-2
    assert found.losses[1] < found.losses[0] < found.before
    assert not (tmp_path / "run").exists()


def command(*arguments):
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    return exit_.value.code


def test_commands_give_one_object(tmp_path, model, data, adapter, capsys):
    args = write_args(tmp_path / "args", model, data)
    common = ("--device", "cpu", "--json", "--quiet")
    page = tmp_path / "evaluation"
    options = ("--limit", 4, "--samples", 2, "--max-new-tokens", 16, "--out", page)
    assert command("evaluate", "--args", args, "--adapter", adapter, *options, *common) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["rows"] == 4
    text = re.sub("</?mark>", "", (page / "index.html").read_text(encoding="utf-8"))
    for sample in result["samples"]:
        assert all(html.escape(sample[name]) in text for name in ("reference", "base", "tuned"))
    assert command("merge", adapter, "--model", model, "--out", tmp_path / "merged", "--json", "--quiet") == 0
    assert json.loads(capsys.readouterr().out)["changed"] == 6
    source, out = tmp_path / "questions.jsonl", tmp_path / "answers.jsonl"
    source.write_text('{"context": "abc?a"}\n')
    assert command("infer", source, "--out", out, "--model", model, "--max-new-tokens", 4, *common) == 0
    assert json.loads(capsys.readouterr().out) == {"rows": 1, "out": str(out), "column": "answer"}
    assert command("evaluate", "--args", args, "--split", "test") == 2
    assert "write valid or train" in capsys.readouterr().err
