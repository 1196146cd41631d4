"""The presets, `glmspectra init`, and the dry run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from glmspectra.cli.main import app
from glmspectra.errors import ConfigError, RequestError
from glmspectra.tuning.memory.dry_run import dry_run, show
from glmspectra.tuning.settings.explain import json_schema
from glmspectra.tuning.settings.files import FILES
from glmspectra.tuning.settings.load import load_settings
from glmspectra.tuning.settings.presets import (
    CHOICES,
    PRESETS,
    SCHEMAS,
    find_preset,
    preset_files,
    schema_name,
    write_presets,
)
from tests.tuning.tiny_run import write_args, write_data, write_model

TOP = Path(__file__).parents[2]
METHODS = {
    "qlora": "qlora",
    "lora": "lora",
    "qlora_spectra": "qlora",
    "adalora": "adalora",
    "qlora_8gb": "qlora",
    "study": "qlora",
}
FILES_WRITTEN = 6 * 3 + 1 + 2 + 3  # three a preset, the ranks of one, the data, the schemas


def test_the_repository_holds_what_init_writes():
    files = preset_files()
    assert len(files) == FILES_WRITTEN
    assert {path.relative_to(PRESETS) for path in PRESETS.rglob("*.json*")} <= files.keys()
    for path, content in files.items():
        assert (TOP / path).read_bytes() == content, path


@pytest.mark.parametrize("name", METHODS)
def test_every_preset_loads_without_a_note(name):
    preset = find_preset(name)
    settings = load_settings(PRESETS / preset.path)
    assert settings.method == METHODS[name]
    assert Path(settings.train.output_dir).name == name
    schemas = {json.loads(path.read_text())["$schema"] for path in (PRESETS / preset.path).glob("*_args.json")}
    assert {(preset.path / schema).resolve() for schema in schemas} == {
        (SCHEMAS / schema_name(s)).resolve() for s in FILES
    }
    assert settings.notes == []
    assert settings.finetune.model_path == "nano"
    settings.training_arguments(use_cpu=True)


def test_the_preset_study_is_the_study():
    settings = load_settings(PRESETS / "args_file/study")
    lora, train = settings.lora, settings.train
    assert (lora.r, lora.lora_alpha, lora.lora_dropout, lora.target_modules) == (12, 24, 0.05, ["query_key_value"])
    assert (train.learning_rate, train.lr_scheduler_type, train.num_train_epochs) == (2e-5, "linear", 3)
    assert (train.per_device_train_batch_size, train.weight_decay) == (8, 0.01)
    assert load_settings(PRESETS / "args_file/lora").lora.lora_alpha == 48


def test_the_ranks_of_the_preset_are_of_the_embedded_model(tmp_path):
    """Loading checks the fingerprint; the parameters are those of r 12 on query_key_value, at most."""
    settings = load_settings(PRESETS / "args_file/qlora_spectra")
    assert settings.lora.ranks_base["name"] == "nano"
    assert len(settings.lora.rank_pattern) == len(settings.lora.target_modules) > 8
    with pytest.raises(
        ConfigError, match=r"^the ranks were measured on nano .fingerprint \w+., but the model is model"
    ):
        load_settings(PRESETS / "args_file/qlora_spectra", [f"model_path={write_model(tmp_path / 'model', 'chatglm')}"])


def test_init_writes_and_does_not_overwrite(tmp_path):
    written, same = write_presets(tmp_path)
    assert len(written) == FILES_WRITTEN
    assert same == []
    written, same = write_presets(tmp_path)
    assert (len(written), len(same)) == (0, FILES_WRITTEN)
    changed = tmp_path / "args_file/lora_args.json"
    changed.write_text("{}")
    (tmp_path / "args_file/lora/lora_args.json").unlink()
    with pytest.raises(RequestError) as caught:
        write_presets(tmp_path)
    assert str(caught.value) == (
        f"{changed} would be overwritten, and nothing was written; use --force to take the presets all the same."
    )
    assert not (tmp_path / "args_file/lora/lora_args.json").exists()
    written, _ = write_presets(tmp_path, force=True)
    assert len(written) == 2


def test_the_command_gives_one_object(tmp_path):
    result = CliRunner().invoke(app, ["init", str(tmp_path / "mine"), "--json"])
    assert result.exit_code == 0
    assert len(json.loads(result.stdout)["written"]) == FILES_WRITTEN
    lines = CliRunner().invoke(app, ["init", str(tmp_path / "mine")]).stdout.splitlines()
    assert lines[0] == f"{FILES_WRITTEN} files stood there already"
    assert lines[-1] == f"next: cd {tmp_path / 'mine'} && glmspectra train"
    assert [line.split()[0] for line in lines[2:8]] == [preset.name for preset in CHOICES]
    result = CliRunner().invoke(app, ["init", str(tmp_path / "one"), "--preset", "lora", "--json"])
    found = json.loads(result.stdout)
    assert len(found["written"]) == 3 + 2 + 3
    assert found["next"].endswith("glmspectra train --args args_file/lora")
    result = CliRunner().invoke(app, ["init", str(tmp_path / "one"), "--preset", "qlore"])
    assert str(result.exception).startswith("--preset qlore: write one of qlora, lora,")


def test_every_key_is_explained():
    result = CliRunner().invoke(app, ["init", "--keys", "--json"])
    table = json.loads(result.stdout)["keys"]
    assert len(table) > 150  # those of the Trainer too
    ours = [entry for entry in table if entry["file"] != "train_args.json"]
    assert {"dataset_path", "Adapter_name", "deltaT", "start_ranks"} <= {entry["key"] for entry in ours}
    assert all(entry["meaning"].endswith(".") and entry["takes"] for entry in table)
    text = CliRunner().invoke(app, ["init", "--keys"]).stdout
    assert (
        "  r (default 8): Rank of each matrix that rank_pattern does not name. Takes a whole number of at least 1."
    ) in text.splitlines()
    assert "push_to_hub" not in text
    assert "  label_smoothing_factor: refused. The loss is the plain cross-entropy" in text
    assert all(f"  {entry['key']} (" in text for entry in table if entry["status"] == "done")


def test_editors_find_what_the_settings_refuse():
    """The schemas, read by a library, accept the presets and refuse what `load_settings` refuses."""
    jsonschema = pytest.importorskip("jsonschema")
    for section in FILES:
        checker = jsonschema.Draft202012Validator(json_schema(section))
        checker.check_schema(json_schema(section))
        for preset in CHOICES:
            checker.validate(json.loads((PRESETS / preset.path / FILES[section]).read_text()))
    train = jsonschema.Draft202012Validator(json_schema("train"))
    for wrong in ({"learning_rate": "1e-4"}, {"optim": "galore_adamw"}, {"label_smoothing_factor": 0.1}, {"lr": 1.0}):
        assert not train.is_valid(wrong), wrong
    lora = jsonschema.Draft202012Validator(json_schema("lora"))
    assert lora.is_valid({"Adapter_name": "a", "deltaT": 1})
    assert not lora.is_valid({"r": 0})


def test_a_wrong_setting_is_answered_without_loading_torch(tmp_path):
    write_presets(tmp_path)
    code = (
        "import sys\nfrom glmspectra.cli.main import main\n"
        "try:\n    main(['train', '--set', 'train.learning_rte=1'])\nexcept SystemExit as leaving:\n"
        "    print(leaving.code, sorted({'torch', 'transformers', 'datasets', 'pandas', 'scipy'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "2 []"
    assert "did you mean learning_rate" in done.stderr


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dry")
    return write_args(folder / "args", write_model(folder / "model", "chatglm"), write_data(folder / "data"))


def test_a_dry_run_tells_everything_and_trains_nothing(tiny):
    output = tiny.parent / "[run]"
    found = dry_run(load_settings(tiny, ["method=qlora", f"train.output_dir={output}"]), "cpu")
    lines = found.lines()
    text = "\n".join(lines)
    assert "  r: 4" in lines
    assert f'  output_dir: "{output}"' in lines  # square brackets as they stand
    assert "trainable parameters: 1,536" in lines  # 4 x (64 + 128) in two layers
    assert "1,536  query_key_value" in [line.strip() for line in lines]
    assert "estimated peak memory of a step of 4 x " in text
    assert "GiB  4-bit weights" in text
    assert "steps: 10, each of 4 rows; one pass over the data is " in text
    assert "examples by template plain (learnt: ⟦ ⟧):" in lines
    assert "<eos>⟧" in text
    assert "longest batch, 4 x " in text
    result = json.loads(json.dumps(found.as_dict()))
    assert result["trainable_parameters"] == {"query_key_value": 1536}
    assert result["memory"]["peak_bytes"] == sum(result["memory"]["parts_bytes"].values())
    assert result["steps"] == 10
    assert result["longest_batch"]["rows"] == 4
    assert result["longest_batch"]["tokens"] == max(found.data.train["length"])
    assert 2 < result["longest_batch"]["loss"] < 8
    assert not output.exists()


def test_shown_examples_mark_what_is_learnt():
    from glmspectra.tuning.data import Encoder, Row
    from tests.tuning.data_tokenizers import TEMPLATE, character_tokenizer

    tokenizer = character_tokenizer(TEMPLATE)
    row = Row("f", 1, (("user", "a\n"), ("assistant", "bc")), True)
    example = Encoder(tokenizer, "chat", 50, "error").encode(row)
    shown = show(tokenizer, {"input_ids": example.input_ids, "labels": example.labels})
    assert shown.line() == "9 tokens, 3 learnt: <|user|>a⏎<|end|>⏎<|assistant|>⟦bc<|end|>⟧"
