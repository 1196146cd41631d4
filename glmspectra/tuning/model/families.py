"""What differs from one family of models to the next: the only table in `tuning/` that names any.

Everything else asks the family. A model type that is not here is trained too: all its linear layers get an
adapter, and its tokenizer's chat template is used where it has one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Family:
    """One family.

    model_types: `model_type` of config.json.
    targets: matrices that get an adapter when the settings name none: module names, or "all-linear".
    template: what `template: auto` means for a pair; "chat" falls back to plain where the tokenizer has none.
    """

    name: str
    model_types: tuple[str, ...]
    targets: tuple[str, ...] | Literal["all-linear"]
    template: Literal["plain", "chat"] = "chat"

    @property
    def default_targets(self) -> list[str] | str:
        """`target_modules` as PEFT takes them."""
        return self.targets if isinstance(self.targets, str) else list(self.targets)


_QKV = ("q_proj", "k_proj", "v_proj")

FAMILIES: tuple[Family, ...] = (
    # The original study adapts the fused matrix and feeds the context as it stands: its data carries the instruction.
    Family("chatglm2", ("chatglm",), ("query_key_value",), template="plain"),
    # The others get adapters where ChatGLM2 has them: on queries, keys and values.
    Family("glm4", ("glm", "glm4"), _QKV),
    Family("llama", ("llama",), _QKV),
    Family("qwen", ("qwen2", "qwen3"), _QKV),
    Family("mistral", ("mistral", "ministral", "mixtral"), _QKV),
    Family("gemma", ("gemma", "gemma2", "gemma3_text"), _QKV),
    Family("smollm3", ("smollm3",), _QKV),
    Family("phi3", ("phi3",), ("qkv_proj",)),
    Family("phi", ("phi",), _QKV),
    # Base models of the time before chat templates.
    Family("gpt2", ("gpt2",), ("c_attn",), template="plain"),
    Family("gpt_neox", ("gpt_neox",), ("query_key_value",), template="plain"),
    Family("bloom", ("bloom",), ("query_key_value",), template="plain"),
    Family("opt", ("opt",), _QKV, template="plain"),
)

OTHER = Family("other", (), "all-linear")


def family_of(config: Mapping[str, Any] | Any) -> Family:
    """The family of a model, by its configuration: the dict of a config.json, or a `PreTrainedConfig`."""
    model_type = config.get("model_type") if isinstance(config, Mapping) else getattr(config, "model_type", None)
    return next((family for family in FAMILIES if model_type in family.model_types), OTHER)
