"""Requests of train, evaluate, infer, merge, chat and init that cannot be met: one sentence, and nothing lost."""

import shutil
from pathlib import Path

import pytest

from glmspectra.checkpoint.writing.merge import merge
from glmspectra.cli.main import main
from glmspectra.device import choose_device
from glmspectra.errors import ConfigError, RequestError
from glmspectra.files import check_target
from glmspectra.tuning.memory.dry_run import dry_run
from glmspectra.tuning.settings.load import load_settings
from glmspectra.tuning.training.run import prepare_run, save_final, train
from tests.tuning.tiny_run import make_run, write_args, write_data, write_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a model, data, the three files and an adapter that was not trained."""
    folder = tmp_path_factory.mktemp("wrong")
    write_data(folder / "data", 8, 4)
    write_model(folder / "model", "chatglm", layers=1)
    run = make_run(folder, folder / "model", folder / "data", train={"max_steps": 1})
    save_final(run, None)
    (folder / "file").write_text("kept")
    (folder / "questions.jsonl").write_text('{"context": "abc?"}\n')
    return folder


def kept(folder):
    """All files but the cache of tokens and what the libraries say of themselves."""
    return sorted(path for path in folder.rglob("*") if "cache" not in path.parts and path.name != "libraries.log")


TRAIN, EVALUATE = ("train", "--args", "args"), ("evaluate", "--args", "args")
INFER = ("infer", "questions.jsonl", "--model", "model", "--out")
MERGE = ("merge", "run/final_adapter", "--model", "model", "--out")


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        ((*EVALUATE, "--limit", "0"), 2, "--limit"),
        ((*EVALUATE, "--batch-size", "0"), 2, "--batch-size"),
        ((*EVALUATE, "--samples", "-1"), 2, "--samples"),
        ((*EVALUATE, "--samples", "1", "--max-new-tokens", "0"), 2, "--max-new-tokens"),
        ((*EVALUATE, "--device", "meta"), 2, "--device meta is not a device: say auto, cpu"),
        ((*EVALUATE, "--out", "file"), 1, "file cannot be read or written: a file is in the way of a folder"),
        ((*INFER, "answers.jsonl", "--batch-size", "-2"), 2, "--batch-size"),
        ((*INFER, "answers.jsonl", "--temperature", "-1"), 2, "--temperature is 0 or more"),
        ((*INFER, "answers.jsonl", "--temperature", "1", "--top-p", "0"), 2, "--top-p in (0, 1]"),
        ((*INFER, "data"), 2, "--out data is a folder"),
        ((*INFER, "file/answers.jsonl"), 1, "file cannot be read or written: a file is in the way of a folder"),
        ((*MERGE, "file"), 2, "--out file is there already, and nothing is overwritten"),
        ((*MERGE, "data"), 2, "--out data is there already, and nothing is overwritten"),
        ((*MERGE, "file/merged"), 1, "a file is in the way of a folder; move it or choose another --out"),
        (("chat", "abc", "--model", "model", "--seed", "-1"), 2, "--seed"),
        (("init", "file"), 1, "a file is in the way of a folder; move it or choose another --out"),
        ((*TRAIN, "--out", "file"), 1, "file cannot be read or written: a file is in the way of a folder"),
        (
            (*TRAIN, "--set", "lora.target_modules=("),
            2,
            "target_modules ( is no regular expression that is run here (missing )",
        ),
        ((*TRAIN, "--set", "train.num_train_epochs=0"), 2, "num_train_epochs is 0; allowed: a number above 0"),
        ((*TRAIN, "--set", "train.dataloader_num_workers=-1"), 2, "dataloader_num_workers is -1; allowed: a whole"),
        ((*TRAIN, "--set", "finetune.final_model_path=file"), 2, "final_model_path file is there already"),
        ((*TRAIN, "--set", "finetune.final_model_path=data"), 2, "holds other things than an earlier adapter_config"),
        ((*TRAIN, "--out", "new", "--set", "finetune.final_model_path=new"), 2, "is output_dir or holds it"),
    ],
)
def test_one_sentence_and_nothing_is_lost(folder, monkeypatch, capsys, arguments, status, sentence):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")
    before = kept(folder)
    with pytest.raises(SystemExit) as leaving:
        main([*arguments, "--quiet"])
    message = capsys.readouterr().err
    assert leaving.value.code == status, message
    assert sentence in message
    assert "Traceback" not in message
    assert (folder / "file").read_text() == "kept"
    assert kept(folder) == before


def test_an_earlier_adapter_is_replaced_and_an_empty_folder_filled(folder, tmp_path):
    check_target(folder / "run" / "final_adapter", "final_model_path", "adapter_config.json")
    check_target(tmp_path, "--out")
    check_target(tmp_path / "new", "--out")
    merge(folder / "model", folder / "run" / "final_adapter", tmp_path / "merged")
    with pytest.raises(RequestError, match="is there already"):
        merge(folder / "model", folder / "run" / "final_adapter", tmp_path / "merged")


def test_a_cache_that_cannot_be_written_costs_time_only(folder):
    settings = load_settings(folder / "args", [f"finetune.cache_dir={folder / 'file'}"])
    assert len(prepare_run(settings, device="cpu", quiet=True).data.train) == 8


def test_a_card_that_is_not_there_is_named():
    with pytest.raises(RequestError, match=r"--device cuda:99: (this machine has no|there are \d+) CUDA device"):
        choose_device("cuda:99")


def test_packed_weights_are_not_quantized_again_and_train_as_they_are(folder, tmp_path):
    from transformers import AutoModelForCausalLM

    shutil.copytree(folder / "model", tmp_path / "model")
    AutoModelForCausalLM.from_pretrained(folder / "model").quantize(4).save_pretrained(tmp_path / "model")
    args = write_args(tmp_path / "args", tmp_path / "model", folder / "data", train={"max_steps": 1})
    for work in (dry_run, prepare_run):
        with pytest.raises(ConfigError, match="is stored in 4 bits already and is used as it is: set method to lora"):
            work(load_settings(args, ["method=qlora"]), "cpu")
    found = dry_run(load_settings(args), "cpu")
    assert found.trainable == {"query_key_value": 4 * (64 + 128)}
    adapter = Path(train(prepare_run(load_settings(args), "cpu", quiet=True))["adapter"])
    assert merge(tmp_path / "model", adapter, tmp_path / "merged").dequantized == 4


def test_the_final_adapter_cannot_hold_the_run(folder, tmp_path):
    args = write_args(tmp_path / "args", folder / "model", folder / "data")
    overrides = [f"train.output_dir={tmp_path / 'a' / 'run'}", f"finetune.final_model_path={tmp_path / 'a'}"]
    with pytest.raises(ConfigError, match="is output_dir or holds it"):
        prepare_run(load_settings(args, overrides), device="cpu", quiet=True)
