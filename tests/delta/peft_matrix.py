"""Every configuration of LoRA on tiny models of five families: what PEFT makes of it, and what is asked of us.

A case is a family, the modules it targets, a variant with its options, and whether the embedding is tied. The reference
are the logits of PEFT's own forward, and the weights of its `merge_and_unload`, for which tied tensors are given memory
of their own: PEFT's merge adds to the shared memory of both, which its forward does not do.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
import torch
from peft.tuners.lora.config import BdLoraConfig, KasaConfig, MontecloraConfig, VeloraConfig
from safetensors.torch import load_file
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
)

from glmspectra.chatglm2 import ChatGLMConfig, ChatGLMForConditionalGeneration

SMALL = {"vocab_size": 48, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


def _llama(tied: bool) -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**SMALL, num_key_value_heads=1, tie_word_embeddings=tied, attention_bias=True))


def _mixtral(tied: bool) -> PreTrainedModel:
    return MixtralForCausalLM(
        MixtralConfig(**SMALL, num_key_value_heads=1, tie_word_embeddings=tied, num_local_experts=2)
    )


def _bert(tied: bool) -> PreTrainedModel:
    return BertForMaskedLM(BertConfig(**SMALL, tie_word_embeddings=tied, max_position_embeddings=16))


def _gpt2(tied: bool) -> PreTrainedModel:
    config = GPT2Config(
        vocab_size=48, n_positions=16, n_embd=16, n_layer=2, n_head=2, tie_word_embeddings=tied,
        bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def _chatglm2(tied: bool) -> PreTrainedModel:
    assert not tied  # the published form has an output layer of its own
    return ChatGLMForConditionalGeneration(
        ChatGLMConfig(
            num_layers=2,
            padded_vocab_size=48,
            hidden_size=16,
            ffn_hidden_size=24,
            kv_channels=8,
            num_attention_heads=2,
            multi_query_attention=True,
            multi_query_group_num=1,
            seq_length=32,
        )
    )


@dataclass(frozen=True)
class Family:
    """A model and the last names of its modules: square and not, of the layer class, embedding and output."""

    make: Callable[[bool], PreTrainedModel]
    square: str
    oblong: str
    embedding: str
    output: str
    ties: bool = True


FAMILIES = {
    "chatglm2": Family(_chatglm2, "dense", "query_key_value", "word_embeddings", "output_layer", ties=False),
    "llama": Family(_llama, "q_proj", "down_proj", "embed_tokens", "lm_head"),
    "gpt2": Family(_gpt2, "attn.c_proj", "c_attn", "wte", "lm_head"),
    "bert": Family(_bert, "query", "intermediate.dense", "word_embeddings", "decoder"),
    "mixtral": Family(_mixtral, "o_proj", "k_proj", "embed_tokens", "lm_head", ties=False),
}

# Variant -> keys of the configuration. "start": factors that the adapter began with are saved beside it.
VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {},
    "patterns": {"rank_pattern": {r".*1\..*": 2}, "alpha_pattern": {r".*0\..*": 3}},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "rslora-dora": {"use_rslora": True, "use_dora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "pissa-dora": {"init_lora_weights": "pissa", "use_dora": True},
    "olora": {"init_lora_weights": "olora"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "mica": {"init_lora_weights": "mica"},
    "kasa": {"kasa_config": KasaConfig()},
    "bdlora": {"use_bdlora": "blocks"},
    "velora": {"velora_config": VeloraConfig(num_groups=4)},
    "monteclora": {"monteclora_config": MontecloraConfig()},
    "alora": {"alora_invocation_tokens": [5, 6]},
    "adalora": {},
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias-all": {"bias": "all"},
    "bias-lora-only": {"bias": "lora_only"},
    "lora-bias": {"lora_bias": True},
    "tokens": {"trainable_token_indices": [1, 4]},
    "fan-in-fan-out": {"fan_in_fan_out": True},
}
TARGETS = (
    "square",
    "oblong",
    "square+output",
    "embedding",
    "embedding+output",
    "saved-embedding",
    "saved-output",
    "saved-both",
)


@dataclass(frozen=True)
class Case:
    """One configuration."""

    family: str
    targets: str
    variant: str
    option: str
    tied: bool
    tying_ensured: bool = False

    def __str__(self) -> str:
        tied = ("-tied" if self.tied else "") + ("-ensured" if self.tying_ensured else "")
        return f"{self.family}-{self.targets}-{self.variant}-{self.option}{tied}"


EVERYWHERE = ("lora", "dora", "pissa", "olora")  # variants that meet every set of targets
FEW = TARGETS[:3]


def cases(family: str) -> Iterator[Case]:
    """The cases of one family: the variants on sets of targets, and options beside the first of them."""
    ties = (False, True) if FAMILIES[family].ties else (False,)
    for tied in ties:
        for variant in VARIANTS:
            for targets in TARGETS if variant in EVERYWHERE else FEW:
                yield Case(family, targets, variant, "plain", tied)
        for option in list(OPTIONS)[1:]:
            for variant in ("lora", "dora", "pissa"):
                for targets in TARGETS if variant == "lora" else FEW[:2]:
                    yield Case(family, targets, variant, option, tied)
        if tied:
            for targets in TARGETS[2:]:
                yield Case(family, targets, "lora", "plain", tied, tying_ensured=True)


@dataclass
class Made:
    """A case on the disk, and what PEFT says of it.

    Attributes:
        adapter: Its folder.
        before, after: Weights of the base and of PEFT's merged model, each tensor with memory of its own; empty where
            PEFT's merge adds to a shared tensor twice (tied tensors that are trained together).
        logits: Of the model with its adapter, not merged.
        merged_logits: Of PEFT's merged model, where tied tensors were trained together.
        not_made: Why PEFT makes no such adapter, or cannot run it. not_merged: Why it does not merge it.
    """

    adapter: Path
    before: dict[str, torch.Tensor] = field(default_factory=dict)
    after: dict[str, torch.Tensor] = field(default_factory=dict)
    logits: torch.Tensor | None = None
    merged_logits: torch.Tensor | None = None
    not_made: str = ""
    not_merged: str = ""

    @property
    def contradicts(self) -> bool:
        """Whether PEFT's merged model is not the model with its adapter, by its own logits."""
        both = self.merged_logits is not None and self.logits is not None
        return both and not torch.allclose(self.merged_logits, self.logits, atol=1e-4)


class Matrix:
    """Makes cases in a folder; bases are made once, and each layout of a merged model is loaded once."""

    def __init__(self, root: Path):
        self.root = root
        self._models: dict[tuple[str, bool], PreTrainedModel] = {}
        self._loaded: dict[tuple, PreTrainedModel] = {}

    def load(self, case: Case, folder: Path) -> PreTrainedModel:
        """The case's class of model from a folder, until the next is loaded.

        Where all but the numbers was loaded before, they take the place of that model's: a third of the time. Not where
        transformers stores a model by other names than it has.
        """
        weights = load_file(folder / "model.safetensors")
        layout = [(name, tuple(tensor.shape), tensor.dtype) for name, tensor in sorted(weights.items())]
        key = (case.family, case.tied, (folder / "config.json").read_text(encoding="utf-8"), *layout)
        if (model := self._loaded.get(key)) is not None:
            model.load_state_dict(weights, strict=False)
            return model
        model = type(self._models[case.family, case.tied]).from_pretrained(folder).eval()
        if weights.keys() <= model.state_dict().keys():
            self._loaded[key] = model
        return model

    def base(self, family: str, tied: bool) -> Path:
        """The family's tiny model on the disk, every weight moved off its initialization."""
        folder = self.root / f"{family}{'-tied' if tied else ''}"
        if (family, tied) not in self._models:
            torch.manual_seed(0)
            model = FAMILIES[family].make(tied)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.1 * torch.randn_like(parameter))
            model.save_pretrained(folder)
            self._models[family, tied] = type(model).from_pretrained(folder).eval()
        return folder

    def make(self, case: Case) -> Made:
        """Make the adapter with PEFT, move everything that trains, save it, run it, and merge it with PEFT."""
        self.base(case.family, case.tied)
        made = Made(self.root / str(case))
        plain = self._models[case.family, case.tied]
        try:
            tuned = self._tuned(case, copy.deepcopy(plain), made.adapter)
            if case.variant != "alora":  # it runs on inputs that hold its invocation only
                made.logits = logits_of(tuned)
        except Exception as error:  # PEFT raises whatever the model raises
            made.not_made = _said(error)
            return made
        try:
            if case.tied and self._changes_shared_memory(case):
                made.merged_logits = logits_of(tuned.merge_and_unload())
                return made
            if case.tied:
                plain = _apart(copy.deepcopy(plain))
                tuned = self._tuned(case, copy.deepcopy(plain), None)
            made.before = plain.state_dict()
            made.after = tuned.merge_and_unload(safe_merge=True).state_dict()
        except Exception as error:
            made.not_merged = _said(error)
        return made

    @staticmethod
    def _changes_shared_memory(case: Case) -> bool:
        """Whether PEFT changes the memory of a tied pair, so that its merge cannot be computed from tensors apart."""
        reduced = case.variant in ("pissa", "pissa-dora", "olora", "kasa") and "output" in case.targets
        return case.tying_ensured or case.option == "tokens" or reduced

    def _tuned(self, case: Case, model: PreTrainedModel, folder: Path | None) -> peft.PeftModel:
        torch.manual_seed(1)
        tuned = peft.get_peft_model(model, _config(case))
        tuned.create_or_update_model_card = lambda *_: None  # a third of the time
        if folder is not None and case.variant in ("pissa", "pissa-dora", "olora"):
            tuned.save_pretrained(folder / "initial_adapter")
        with torch.no_grad():
            for parameter in tuned.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        if folder is not None:
            tuned.save_pretrained(folder)
        return tuned.eval()


def logits_of(model: nn.Module) -> torch.Tensor:
    """Of twelve tokens."""
    with torch.no_grad():
        return model(input_ids=torch.arange(12)[None]).logits.float()


def _apart(model: PreTrainedModel) -> PreTrainedModel:
    """The model with memory of its own for every tensor, so that PEFT's merge into one changes no other."""
    output, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    output.weight = nn.Parameter(embedding.weight.detach().clone())
    model.config.tie_word_embeddings = False
    return model


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:160]}"


def _config(case: Case) -> peft.PeftConfig:
    family = FAMILIES[case.family]
    names = {"square": family.square, "oblong": family.oblong, "embedding": family.embedding, "output": family.output}
    targets, saved = [family.square], None
    if case.targets.startswith("saved-"):
        one = {"saved-embedding": [family.embedding], "saved-output": [family.output]}
        saved = one.get(case.targets, [family.embedding, family.output])
    else:
        targets = [names[word] for word in case.targets.split("+")]
    keys: dict[str, Any] = {
        "lora_alpha": 6, "target_modules": targets, "modules_to_save": saved,
        "ensure_weight_tying": case.tying_ensured, **VARIANTS[case.variant], **OPTIONS[case.option],
    }  # fmt: skip
    if case.variant == "bdlora":
        leaf = targets[0].rpartition(".")[2]
        keys["use_bdlora"] = BdLoraConfig(target_modules_bd_a=[leaf], nblocks=2, match_strict=False)
    if case.variant == "adalora":
        return peft.AdaLoraConfig(init_r=4, target_r=2, total_step=10, tinit=1, tfinal=2, **keys)
    return peft.LoraConfig(r=4, **keys)
