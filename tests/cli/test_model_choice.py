"""--model, model_path of args_file/finetune_args.json, the embedded model: in that order."""

import json

import pytest

from glmspectra.cli.model_choice import choose_model
from glmspectra.embedded import EMBEDDED_MODEL
from glmspectra.errors import ConfigError, RequestError


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "args_file").mkdir()
    return tmp_path


def settings(here, text):
    (here / "args_file" / "finetune_args.json").write_text(text)


def test_the_option_wins(here):
    (here / "one").mkdir()
    settings(here, json.dumps({"model_path": "two"}))
    assert choose_model(here / "one") == here / "one"


def test_then_the_settings(here):
    (here / "chatglm2-6b").mkdir()
    settings(here, json.dumps({"model_path": "chatglm2-6b", "seed": 42}))
    assert choose_model(None).resolve() == here / "chatglm2-6b"


@pytest.mark.parametrize("text", [None, '{"model_path": "nano"}', '{"seed": 42}'])
def test_then_the_embedded_model(here, text):
    if text is not None:
        settings(here, text)
    assert choose_model(None) == EMBEDDED_MODEL


def test_a_folder_named_nano_is_taken_before_the_embedded_model(here):
    (here / "nano").mkdir()
    settings(here, '{"model_path": "nano"}')
    assert choose_model(None).resolve() == here / "nano"


def test_a_path_that_is_not_there_says_where_it_came_from(here):
    with pytest.raises(RequestError, match="--model says absent, and there is no such file or folder"):
        choose_model(here.__class__("absent"))
    settings(here, '{"model_path": "THUDM/chatglm2-6b"}')
    with pytest.raises(RequestError, match=r"model_path of args_file/finetune_args\.json says THUDM/chatglm2-6b"):
        choose_model(None)


@pytest.mark.parametrize("text", ["{", "[]", '{"model_path": 3}', '{"model_path": ""}', '{"model_path": null}'])
def test_settings_that_cannot_be_read_are_named(here, text):
    settings(here, text)
    with pytest.raises(ConfigError, match=r"args_file/finetune_args\.json.*mend it"):
        choose_model(None)
