"""ChatGLM2's tokenizer over a sentencepiece model, for today's transformers.

Ids, padding, prompts and decoded text are those of the published tokenizer. Where that one could not serve
today's libraries it was changed: the special tokens can be read and set like any tokenizer's, every id has a name
of its own in `get_vocab()` (so `len()` is 64794, not 64787, and resizing embeddings by it cuts nothing off),
padding may be on the right, and there is a chat template. As there, special ids are only ever put in by the
tokenizer: a literal `[gMASK]`, `sop` or `</s>` in a text is ordinary text.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import AddedToken
from transformers import PreTrainedTokenizer
from transformers.tokenization_utils_base import BatchEncoding, EncodedInput
from transformers.utils import PaddingStrategy

from glmspectra.errors import RequestError

VOCAB_FILE = "tokenizer.model"

# Ids after the pieces of the sentencepiece model, in this order (64789 to 64793 in the published tokenizer).
COMMANDS = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")

# The rounds of `build_prompt`. A system message stands before the last question, where ChatGLM2's own API server
# puts it.
CHAT_TEMPLATE = """\
{%- set state = namespace(system='', round=0, last_user=-1) -%}
{%- for message in messages -%}
  {%- if message['role'] == 'user' -%}{%- set state.last_user = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- for message in messages -%}
  {%- if message['role'] == 'system' and loop.first -%}
    {%- set state.system = message['content'] -%}
  {%- elif message['role'] == 'user' -%}
    {%- set state.round = state.round + 1 -%}
    {%- if state.round > 1 -%}{{- '\\n\\n' -}}{%- endif -%}
    {{- '[Round ' ~ state.round ~ ']\\n\\n问：' -}}
    {%- if loop.index0 == state.last_user -%}{{- state.system -}}{%- endif -%}
    {{- message['content'] -}}
  {%- elif message['role'] == 'assistant' -%}
    {{- '\\n\\n答：' ~ message['content'] -}}
  {%- else -%}
    {{- raise_exception('ChatGLM2 takes system (first), user and assistant, not ' ~ message['role'] ~ '.') -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '\\n\\n答：' -}}{%- endif -%}
"""


class ChatGLMTokenizer(PreTrainedTokenizer):
    """Texts to ids `[gMASK] sop text...`, left padded with id 0, and back.

    Args:
        vocab_file: path of the sentencepiece model, `tokenizer.model`.
        padding_side: `"left"` as the model was trained, or `"right"`.

    Raises:
        RequestError: there is no such file, or it is no sentencepiece model (GLM-4's `tokenizer.model` is none).
    """

    vocab_files_names = {"vocab_file": VOCAB_FILE}  # noqa: RUF012  (transformers reads class attributes)
    model_input_names = ["input_ids", "attention_mask", "position_ids"]  # noqa: RUF012

    def __init__(self, vocab_file: str, padding_side: str = "left", **kwargs: Any):
        self.vocab_file = vocab_file
        # Before the base class, whose __init__ already asks for the vocabulary.
        self.sp_model = _load_sentencepiece(vocab_file)
        pieces = self.sp_model.get_piece_size()
        self.commands = {name: pieces + index for index, name in enumerate(COMMANDS)}
        unk = self.sp_model.id_to_piece(self.sp_model.unk_id())
        kwargs.pop("auto_map", None)  # would have a saved folder ask for remote code
        kwargs.setdefault("unk_token", unk)
        kwargs.setdefault("pad_token", unk)  # as published: padding is <unk>, id 0
        kwargs.setdefault("eos_token", self.sp_model.id_to_piece(self.sp_model.eos_id()))
        kwargs.setdefault("clean_up_tokenization_spaces", False)
        if kwargs.get("chat_template") is None:
            kwargs["chat_template"] = CHAT_TEMPLATE
        super().__init__(padding_side=padding_side, **kwargs)

    # The vocabulary

    @property
    def vocab_size(self) -> int:
        """Pieces of the sentencepiece model and the five command tokens; the embedding has rows beyond it."""
        return self.sp_model.get_piece_size() + len(COMMANDS)

    def get_vocab(self) -> dict[str, int]:
        """Name of each token to its id: pieces, command tokens, tokens that were added."""
        ids = range(self.sp_model.get_piece_size())
        pieces = {self.sp_model.id_to_piece(index): index for index in ids}
        return {**pieces, **self.commands, **self._added_tokens_encoder}

    def get_command(self, token: str) -> int:
        """Id of a special token by the published names: `<bos>`, `<eos>`, `<pad>`, `[gMASK]`, `sop`, ...

        Raises:
            RequestError: there is no such special token.
        """
        ids = {
            "<bos>": self.sp_model.bos_id(),
            "<eos>": self.sp_model.eos_id(),
            "<pad>": self.sp_model.unk_id(),
            **self.commands,
        }
        if token not in ids:
            raise RequestError(f"there is no special token {token!r}: take one of {', '.join(ids)}.")
        return ids[token]

    def _add_tokens(self, new_tokens: Sequence[str | AddedToken], special_tokens: bool = False) -> int:
        # Tokens of the published vocabulary stay out of the added ones, which are looked for in every text.
        new: list[Any] = [token for token in new_tokens if not self._is_own(str(token))]
        return super()._add_tokens(new, special_tokens=special_tokens)

    def _is_own(self, token: str) -> bool:
        return token in self.commands or self.sp_model.id_to_piece(self.sp_model.piece_to_id(token)) == token

    # Texts to ids

    def tokenize(self, text: str, **kwargs: Any) -> list[str]:  # type: ignore[override]
        """Pieces of `text`; only tokens that were added by `add_tokens` are cut out whole."""
        if not self._added_tokens_encoder or kwargs.get("split_special_tokens", self.split_special_tokens):
            return self._tokenize(text)
        tokens: list[str] = []
        for part in self.tokens_trie.split(text):
            tokens += [part] if part in self._added_tokens_encoder else self._tokenize(part)
        return tokens

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        pieces: list[str] = self.sp_model.encode(text, out_type=str)
        return pieces

    def _convert_token_to_id(self, token: str) -> int:
        return self.commands[token] if token in self.commands else self.sp_model.piece_to_id(token)

    def get_prefix_tokens(self) -> list[int]:
        """The two ids every input starts with: `[gMASK]`, `sop`."""
        return [self.commands["[gMASK]"], self.commands["sop"]]

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """`[gMASK] sop A`, and for a pair `[gMASK] sop A B eos`."""
        ids = self.get_prefix_tokens() + token_ids_0
        return ids if token_ids_1 is None else [*ids, *token_ids_1, self.get_command("<eos>")]

    def get_special_tokens_mask(
        self,
        token_ids_0: list[int],
        token_ids_1: list[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """1 where `build_inputs_with_special_tokens` puts a token of its own, 0 where the text is."""
        if already_has_special_tokens:
            special = {*self.commands.values(), self.get_command("<eos>"), self.get_command("<pad>")}
            return [int(token in special) for token in token_ids_0]
        mask = [1, 1] + [0] * len(token_ids_0)
        return mask if token_ids_1 is None else [*mask, *[0] * len(token_ids_1), 1]

    def _pad(
        self,
        encoded_inputs: dict[str, EncodedInput] | BatchEncoding,
        max_length: int | None = None,
        padding_strategy: PaddingStrategy = PaddingStrategy.DO_NOT_PAD,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
    ) -> dict[str, Any]:
        """Pad one row and give it position ids: 0, 1, ... over its tokens, 0 on padding."""
        length = len(encoded_inputs["input_ids"])
        padded = super()._pad(
            encoded_inputs,
            max_length=max_length,
            padding_strategy=padding_strategy,
            pad_to_multiple_of=pad_to_multiple_of,
            padding_side=padding_side,
            return_attention_mask=return_attention_mask,
        )
        if "position_ids" in self.model_input_names:
            positions = list(padded.get("position_ids", range(length)))
            padding = [0] * (len(padded["input_ids"]) - len(positions))
            on_left = (padding_side or self.padding_side) == "left"
            padded["position_ids"] = padding + positions if on_left else positions + padding
        return padded

    # Ids to texts

    def _convert_id_to_token(self, index: int) -> str:
        if index in self.commands.values() or index in self._silent_ids() or index < 0:
            return ""
        if index >= self.vocab_size:
            raise IndexError(
                f"id {index} has no text: this tokenizer ends at {self.vocab_size - 1}, and the embedding rows "
                "after it were never used."
            )
        return self.sp_model.id_to_piece(index)

    def _silent_ids(self) -> tuple[int, int, int]:
        return self.sp_model.bos_id(), self.sp_model.eos_id(), self.sp_model.unk_id()

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join pieces to text without the leading space that sentencepiece adds; special tokens are silent."""
        pieces = [token for token in tokens if token and token not in self.commands]
        return str(self.sp_model.decode_pieces(pieces))

    # Conversations

    def build_prompt(self, query: str, history: Sequence[tuple[str, str]] | None = None) -> str:
        """`[Round n]`, the question after `问：`, the answer after `答：`; the last answer is left open.

        Args:
            query: the question to answer.
            history: (question, answer) pairs before it.

        Raises:
            RequestError: the tokenizer is ChatGLM3's, whose conversations have another template.
        """
        if self._is_chatglm3():
            raise RequestError(
                f"{self.name_or_path} is ChatGLM3's tokenizer, whose conversations are marked by role tokens and not "
                "by [Round n]: texts and training on them work here, build_prompt and chat do not."
            )
        rounds = [
            f"[Round {number}]\n\n问：{question}\n\n答：{answer}\n\n"
            for number, (question, answer) in enumerate(history or [], start=1)
        ]
        return "".join(rounds) + f"[Round {len(rounds) + 1}]\n\n问：{query}\n\n答："

    def _is_chatglm3(self) -> bool:
        # The two have one sentencepiece model; later ChatGLM3 folders list the role tokens, earlier ones only a name.
        return "<|user|>" in self._added_tokens_encoder or Path(self.name_or_path).name.lower().startswith("chatglm3")

    def apply_chat_template(  # type: ignore[override]  # the order of arguments changes between versions
        self,
        conversation: Any,
        *,
        tokenize: bool = True,
        padding: Any = False,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: Any = None,
        return_dict: bool = True,
        tokenizer_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """As in the base class, except that the ids start with `[gMASK] sop`.

        The base class has a template write its special tokens as text and encodes the whole without adding any.
        Here a special token in a text is never read as one, so the ids are added where they are for every other
        input. With `add_generation_prompt=True` they are those of `build_prompt`.
        """
        rendered = super().apply_chat_template(conversation, tokenize=False, **kwargs)
        if not tokenize:
            return rendered
        encoded = self(
            rendered,
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            return_tensors=return_tensors,
            **(tokenizer_kwargs or {}),
        )
        return encoded if return_dict else encoded["input_ids"]

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        """Write the sentencepiece model into `save_directory`; returns the path written."""
        name = f"{filename_prefix}-{VOCAB_FILE}" if filename_prefix else VOCAB_FILE
        target = Path(save_directory) / name
        if not (target.exists() and target.samefile(self.vocab_file)):
            shutil.copyfile(self.vocab_file, target)
        return (str(target),)


def _load_sentencepiece(path: str) -> sentencepiece.SentencePieceProcessor:
    if not path or not Path(path).is_file():
        where = f"at {path}" if path else "in this folder"
        raise RequestError(f"there is no tokenizer {where}: a ChatGLM2 folder holds it as {VOCAB_FILE}.")
    model = sentencepiece.SentencePieceProcessor()
    try:
        model.load(str(path))
    except (RuntimeError, OSError) as error:
        raise RequestError(
            f"{path} is not a sentencepiece model, which ChatGLM2 and ChatGLM3 have; GLM-4's tokenizer is another "
            "and is loaded by transformers' own classes."
        ) from error
    return model
