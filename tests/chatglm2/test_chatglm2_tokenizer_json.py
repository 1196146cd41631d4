"""`tokenizer.json` of a converted folder against the sentencepiece library and the recorded ids."""

import json
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from glmspectra.chatglm2.folder_conversion import convert_folder
from glmspectra.chatglm2.tokenization import ChatGLMTokenizer
from glmspectra.chatglm2.tokenizer_json import fast_tokenizer, write_fast_tokenizer
from glmspectra.embedded import EMBEDDED_MODEL
from glmspectra.errors import RequestError

NANO = EMBEDDED_MODEL / "tokenizer.model"
SHARED = Path(__file__).resolve().parents[3] / "shared"
REAL = SHARED / "tokenizer" / "chatglm2" / "tokenizer.model"
SPECIAL = ("[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<s>", "</s>", "<unk>")


@pytest.fixture(scope="module")
def nano():
    return fast_tokenizer(NANO), ChatGLMTokenizer(str(NANO))


@pytest.fixture(scope="module")
def real():
    if not REAL.is_file():
        pytest.skip("needs the real tokenizer beside the checkout")
    return fast_tokenizer(REAL), ChatGLMTokenizer(str(REAL))


TEXTS = st.text(st.characters(codec="utf-8"), max_size=60).filter(lambda text: not any(s in text for s in SPECIAL))


@given(TEXTS)
@example("头晕怎么办？\n\n答：先休息。")
@example("  two  spaces  ")
@example("philosophy and sop, 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 \u2581 ␣")
@settings(deadline=None, max_examples=150)
def test_any_text_has_the_ids_of_sentencepiece(nano, text):
    fast, slow = nano
    assert fast.encode(text).ids == slow(text)["input_ids"]


@pytest.mark.shared
@given(TEXTS)
@settings(deadline=None, max_examples=150)
def test_any_text_has_the_ids_of_the_real_tokenizer(real, text):
    fast, slow = real
    assert fast.encode(text).ids == slow(text)["input_ids"]


@pytest.mark.shared
def test_the_recorded_ids_of_the_published_tokenizer(real):
    recorded = json.loads((SHARED / "golden" / "tokenizer.json").read_text(encoding="utf-8"))
    compared = 0
    for case in recorded["cases"]:
        if not any(special in case["text"] for special in SPECIAL):
            assert real[0].encode(case["text"]).ids == case["ids_with_special_tokens"], case["text"]
            compared += 1
    assert compared > 20


@pytest.mark.shared
def test_the_real_tokenizer_written_into_a_folder_has_the_recorded_ids(real, tmp_path):
    """One of its 65,024 pieces holds a control character (U+0093), which the file has to keep."""
    write_fast_tokenizer(REAL, tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in ("头晕怎么办？", "a \x93 b", "  two  spaces  "):
        assert loaded(text)["input_ids"] == real[1](text)["input_ids"]
    assert loaded.convert_tokens_to_ids(["[gMASK]", "<sop>"]) == [64790, 64792]


def test_a_folder_is_read_by_auto_tokenizer_and_chats_with_the_prefix(tmp_path, nano):
    assert write_fast_tokenizer(NANO, tmp_path) == ["tokenizer.json", "tokenizer_config.json"]
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(loaded, PreTrainedTokenizerFast)
    slow = nano[1]
    for rounds in (
        [{"role": "user", "content": "头晕怎么办？"}],
        [
            {"role": "user", "content": "头晕"},
            {"role": "assistant", "content": "休息。"},
            {"role": "user", "content": "然后呢"},
        ],
    ):
        ids = loaded.apply_chat_template(rounds, add_generation_prompt=True, return_dict=False)
        assert ids == slow.apply_chat_template(rounds, add_generation_prompt=True, return_dict=False)
    pair = loaded("问", "答")["input_ids"]
    assert pair == slow("问", "答")["input_ids"]
    assert loaded.decode(slow("头晕 吃 药")["input_ids"], skip_special_tokens=True) == "头晕 吃 药"
    assert loaded.eos_token_id == slow.eos_token_id
    assert loaded.pad_token_id == slow.pad_token_id


def test_a_folder_with_a_template_of_its_own_chats_with_the_prefix_and_without_it_on_the_way_back(tmp_path, nano):
    assert (EMBEDDED_MODEL / "chat_template.jinja").is_file(), "AutoTokenizer takes it before tokenizer_config.json"
    rounds = [{"role": "user", "content": "头晕怎么办？"}]
    wanted = nano[1].apply_chat_template(rounds, add_generation_prompt=True, return_dict=False)
    convert_folder(EMBEDDED_MODEL, tmp_path / "glm")
    convert_folder(tmp_path / "glm", tmp_path / "back")
    for loaded in (
        AutoTokenizer.from_pretrained(tmp_path / "glm"),
        ChatGLMTokenizer.from_pretrained(tmp_path / "back"),
    ):
        assert loaded.apply_chat_template(rounds, add_generation_prompt=True, return_dict=False) == wanted
    texts = [(folder / "chat_template.jinja").read_text() for folder in (EMBEDDED_MODEL, tmp_path / "back")]
    assert texts[0] == texts[1]


def test_a_model_of_another_kind_is_refused_by_what_is_different(tmp_path):
    for change, words in {
        "remove_extra_whitespaces": "it removes spaces",
        "precompiled_charsmap": "it rewrites characters",
    }.items():
        model = sentencepiece_model_pb2.ModelProto()
        model.ParseFromString(NANO.read_bytes())
        setattr(model.normalizer_spec, change, True if change.startswith("remove") else b"x")
        (tmp_path / "tokenizer.model").write_bytes(model.SerializeToString())
        with pytest.raises(RequestError, match=words):
            fast_tokenizer(tmp_path / "tokenizer.model")
    (tmp_path / "tokenizer.model").write_bytes(b"no such thing")
    with pytest.raises(RequestError, match="is not a sentencepiece model"):
        fast_tokenizer(tmp_path / "tokenizer.model")
