"""ChatGLM2's tokenizer as a `tokenizer.json`, which transformers, vLLM and every other user of fast tokenizers read.

A converted Glm folder needs one: without it those programs read the sentencepiece model alone and leave out
`[gMASK] sop`, the two ids that every input of this model starts with. Ids are those of `ChatGLMTokenizer`, with one
difference: a special token written out in a text (`[gMASK]`, `<sop>`, `</s>` ...) is read as that token here, because
chat templates of those programs put special tokens in as text. `sop` and `eop` are called `<sop>` and `<eop>`, as GLM-4
calls them: as plain words they would be cut out of texts.
"""

from pathlib import Path
from typing import Any

from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE
from transformers.tokenization_utils_base import generate_merges

from glmspectra.chatglm2.tokenization import CHAT_TEMPLATE, COMMANDS
from glmspectra.errors import RequestError
from glmspectra.files import write_text
from glmspectra.json_files import read_bytes, write_json

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
NAMES = {"sop": "<sop>", "eop": "<eop>"}
PREFIX = ("[gMASK]", "<sop>")
# Before a chat template: a program that fills one in adds no prefix of its own.
TEMPLATE_PREFIX = "{{- '" + "".join(PREFIX) + "' -}}\n"
_BPE, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 2, 3, 4, 6  # of sentencepiece_model.proto


def write_fast_tokenizer(vocab_file: Path, folder: Path) -> list[str]:
    """Write tokenizer.json and the tokenizer_config.json that goes with it into `folder`.

    Args:
        vocab_file: ChatGLM2's `tokenizer.model`.
        folder: A converted checkpoint's folder.

    Returns:
        The names of the files written.

    Raises:
        RequestError: The model is not byte-pair encoding as ChatGLM2's is.
    """
    write_text(folder / TOKENIZER_FILE, fast_tokenizer(vocab_file).to_str(pretty=False))
    write_json(folder / CONFIG_FILE, fast_config())
    return [TOKENIZER_FILE, CONFIG_FILE]


def fast_config() -> dict[str, Any]:
    """tokenizer_config.json of a converted Glm folder: a fast tokenizer that pads on the left and chats in rounds."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
        "pad_token": "<unk>",
        "eos_token": "</s>",
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "chat_template": TEMPLATE_PREFIX + CHAT_TEMPLATE,
    }


def slow_config() -> dict[str, Any]:
    """tokenizer_config.json of a ChatGLM2 folder made from a Glm folder that has none of that format."""
    return {"tokenizer_class": "ChatGLMTokenizer", "remove_space": False, "do_lower_case": False}


def fast_tokenizer(vocab_file: Path) -> Tokenizer:
    """The tokenizer of a sentencepiece model with ChatGLM2's five command tokens behind its pieces.

    Raises:
        RequestError: As `write_fast_tokenizer`.
    """
    model: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]  # its module is made at run time
    try:
        model.ParseFromString(read_bytes(vocab_file, RequestError))
    except Exception as error:  # protobuf's own class, whose module is private
        raise RequestError(f"{vocab_file} is not a sentencepiece model.") from error
    _check(model, vocab_file)
    commands = [NAMES.get(name, name) for name in COMMANDS]
    vocab = {piece.piece: index for index, piece in enumerate(model.pieces)}
    vocab |= {name: len(model.pieces) + index for index, name in enumerate(commands)}
    scores = {piece.piece: piece.score for piece in model.pieces}
    # A user-defined symbol of one character is an atom that nothing merges with, as in sentencepiece.
    atoms = [piece.piece for piece in model.pieces if piece.type in (_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE)]
    merges = generate_merges(vocab, scores, [*atoms, *commands])
    unknown = model.trainer_spec.unk_piece
    tokenizer = Tokenizer(BPE(vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    special = [piece.piece for piece in model.pieces if piece.type in (_UNKNOWN, _CONTROL)]
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in [*special, *commands]])
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    end = model.trainer_spec.eos_piece
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*PREFIX, "$A"],
        pair=[*PREFIX, "$A", "$B", end],
        special_tokens=[(name, vocab[name]) for name in (*PREFIX, end)],
    )
    return tokenizer


def _check(model: Any, vocab_file: Path) -> None:
    """Refuse a sentencepiece model that works otherwise than ChatGLM2's, by what is different."""
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    symbols = [piece.piece for piece in model.pieces if piece.type == _USER_DEFINED]
    different = {
        "it is not byte-pair encoding": trainer.model_type != _BPE,
        "it has no byte fallback": not trainer.byte_fallback,
        "it rewrites characters before it splits them": bool(normalizer.precompiled_charsmap),
        "it puts no space before a text": not normalizer.add_dummy_prefix,
        "it removes spaces": normalizer.remove_extra_whitespaces,
        "it marks spaces behind words": trainer.treat_whitespace_as_suffix,
        "it has symbols of several characters": any(len(symbol) > 1 for symbol in symbols),
        "it holds a command token of its own": any(name in NAMES.values() for name in symbols),
    }
    found = [what for what, holds in different.items() if holds]
    if found:
        raise RequestError(f"{vocab_file} cannot become a {TOKENIZER_FILE}: {found[0]}, unlike that of ChatGLM2.")
