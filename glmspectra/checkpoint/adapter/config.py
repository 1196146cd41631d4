"""adapter_config.json as PEFT writes it, since 2023: the type first, then every key understood, harmless, or refused.

PEFT switches a feature off by null, false or an empty value; a key that is not known here is accepted so, and refused
by its name with any other value, because what it does to the weights is not known.
"""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from glmspectra.errors import CheckpointError, RequestError
from glmspectra.json_files import read_object, validate
from glmspectra.peft_rules import ModulePatterns

CONFIG_FILE = "adapter_config.json"

# What PEFT's init_lora_weights does to the base weight. LoftQ replaces it by a quantized copy.
BASE_UNCHANGED = ("true", "false", "gaussian", "eva", "orthogonal", "mica")
BASE_REDUCED = ("pissa", "olora", "corda", "lora_ga")  # W becomes W - s B0 A0

# PEFT's other types (peft.utils.peft_types), and how they change a model: none is a product of two factors.
OTHER_TYPES = {
    "ADAMSS": "AdaMSS, which trains clustered subspaces of each weight",
    "ADAPTION_PROMPT": "LLaMA-Adapter, which adds trained prompts to attention",
    "BEFT": "BEFT, which trains biases",
    "BOFT": "BOFT, which multiplies each weight by a butterfly of rotations",
    "C3A": "C3A, which adds circular convolutions",
    "CARTRIDGE": "Cartridge, which trains a prefix of the key-value cache",
    "CPT": "context-aware prompt tuning, which trains input vectors",
    "DEFT": "DEFT, which projects the weight before it adds to it",
    "DELORA": "DeLoRA, which normalizes each of its directions",
    "FOURIERFT": "FourierFT, which trains a few Fourier coefficients of each weight",
    "FROD": "FRoD, which rotates and scales a shared basis",
    "GLORA": "GLoRA, which scales and shifts weights and activations",
    "GRALORA": "GraLoRA, which has a product for every block of the weight",
    "HIRA": "HiRA, which multiplies each weight by a low-rank matrix entry by entry",
    "HRA": "HRA, which multiplies each weight by reflections",
    "IA3": "IA3, which rescales activations",
    "LILY": "Lily, which mixes shared factors by a router",
    "LN_TUNING": "LayerNorm tuning, which trains norms alone",
    "LOHA": "LoHa, an entrywise product of two low-rank matrices",
    "LOKR": "LoKr, a Kronecker product",
    "MISS": "MiSS, which shares one small matrix over the blocks of a weight",
    "MULTITASK_PROMPT_TUNING": "multitask prompt tuning, which trains input vectors",
    "OFT": "OFT, which rotates each weight",
    "OSF": "OSF, which trains the whole weight inside a subspace",
    "P_TUNING": "p-tuning, which trains input vectors",
    "PEANUT": "PEANuT, which predicts the change of a weight by a small network",
    "POLY": "Poly, which mixes several adapters by task",
    "PREFIX_TUNING": "prefix tuning, which trains keys and values",
    "PROMPT_TUNING": "prompt tuning, which trains input vectors",
    "PSOFT": "PSOFT, which rotates the principal subspace of each weight",
    "PVERA": "PVeRA, which scales shared random matrices at random",
    "RANDLORA": "RandLoRA, a sum of many products of shared random matrices",
    "ROAD": "RoAd, which rotates activations",
    "SHADOW": "ShadowPEFT, which adds a network beside the layers",
    "SHIRA": "SHiRA, which trains scattered entries",
    "SUPERTUNING": "Super-Tuning, which trains scattered entries",
    "TINYLORA": "TinyLoRA, which trains a few numbers in the basis of each weight",
    "TRAINABLE_TOKENS": "trainable tokens alone, which are rows of the embedding",
    "UNILORA": "Uni-LoRA, which projects one shared vector into all factors",
    "VBLORA": "VB-LoRA, which mixes its factors from a shared bank of vectors",
    "VERA": "VeRA, which scales shared random matrices",
    "WAVEFT": "WaveFT, which trains a few wavelet coefficients of each weight",
    "XLORA": "X-LoRA, which mixes several adapters token by token",
}

# Keys that no weight depends on: where the adapter belongs, how it was trained or first filled.
WITHOUT_EFFECT = frozenset(
    {
        *("auto_mapping", "inference_mode", "peft_version", "revision", "task_type"),
        *("lora_dropout", "eva_config", "corda_config", "lora_ga_config", "runtime_config"),
        *("velora_config", "monteclora_config"),  # VeLoRA: backward only; MonteCLoRA: noise that PEFT leaves out too
        *("megatron_core", "qalora_group_size"),  # names of what other keys switch on
        *("merge_weights",),  # 2023: whether eval() merged
        *("tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight", "total_step", "target_r"),  # AdaLoRA
        *("lora_dtype", "lorap_lr_ratio", "lorap_emb_lr"),  # ms-swift: rates and a type of training
    }
)

# Keys that change what is computed in a way that no pair of factors of one weight can say.
REFUSED = {
    "alora_invocation_tokens": "activated LoRA acts only after certain tokens, so that no weight is equal to it",
    "arrow_config": "Arrow mixes several adapters token by token, so that no weight is equal to it",
    "enable_lora": "LoRA of single parts of a fused weight (loralib's MergedLinear) is not read",
    "layer_replication": "it repeats layers of the base under new numbers",
    "megatron_config": "Megatron's parallel layers hold their parts of each factor",
    "use_qalora": "QALoRA averages the inputs of GPTQ layers in groups, and PEFT itself merges none",
}


class LoftQConfig(BaseModel):
    """How LoftQ made its base: bits of the quantized copy (4: NF4, 8: int8) and rounds of its algorithm 1."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    loftq_bits: Literal[2, 4, 8] = 4
    loftq_iter: int = Field(default=1, ge=1, le=100)  # its paper takes 5; each is an SVD of every weight


class BlockDiagonal(BaseModel):
    """BD-LoRA: leaf names (parts of them suffice) of the modules whose A or B is stored as `nblocks` blocks."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    target_modules_bd_a: list[str] | None = None
    target_modules_bd_b: list[str] | None = None
    nblocks: int = Field(default=1, ge=1)
    match_strict: bool = True


class AdapterConfig(BaseModel):
    """The keys of a LORA or ADALORA configuration that a weight depends on, and those that a cut adapter keeps.

    The others are checked by `read_config`.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    peft_type: str
    base_model_name_or_path: str | None = None
    revision: str | None = None
    task_type: str | None = None
    lora_dropout: float | None = None
    r: int | None = Field(default=None, ge=1)
    init_r: int | None = Field(default=None, ge=1)
    lora_alpha: float
    rank_pattern: dict[str, Any] | None = None
    alpha_pattern: dict[str, float] | None = None
    use_rslora: bool | None = False
    use_dora: bool | None = False
    lora_bias: bool | None = False
    bias: str | None = "none"
    fan_in_fan_out: bool | None = False
    init_lora_weights: bool | str | None = True
    loftq_config: LoftQConfig | None = None
    kasa_config: dict[str, Any] | None = None
    use_bdlora: BlockDiagonal | None = None
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    target_parameters: list[str] | None = None
    modules_to_save: list[str] | str | None = None
    trainable_token_indices: list[int] | dict[str, list[int]] | None = None
    ensure_weight_tying: bool | None = False

    @property
    def adalora(self) -> bool:
        """Whether the change is B diag(E) A with pruned triplets."""
        return self.peft_type == "ADALORA"

    @property
    def modules_of_parameters(self) -> list[str]:
        """Ends of the names of modules whose bare parameters have factors (stacked experts); a `weight` is none."""
        split = [key.rpartition(".") for key in self.target_parameters or []]
        return sorted({module for module, _, parameter in split if parameter != "weight"})

    @cached_property
    def start(self) -> str:
        """The initialization, lower case, without PiSSA's number of iterations."""
        return str(self.init_lora_weights).lower().split("_niter_")[0] if self.init_lora_weights is not None else "true"

    @cached_property
    def peft_method(self) -> str:
        """Name of the method for people: lora, rslora, adalora, dora, kasa, pissa, olora, corda, lora_ga or loftq."""
        if self.adalora:
            return "adalora"
        if self.start in BASE_REDUCED or self.start == "loftq":
            return self.start
        if self.kasa_config is not None:
            return "kasa"
        if self.use_dora:
            return "dora"
        return "rslora" if self.use_rslora else "lora"

    @cached_property
    def _ranks(self) -> ModulePatterns:
        return ModulePatterns(self.rank_pattern or {}, "rank_pattern")

    @cached_property
    def _alphas(self) -> ModulePatterns:
        return ModulePatterns(self.alpha_pattern or {}, "alpha_pattern")

    def rank_of(self, module: str) -> tuple[int, str | None]:
        """The rank that PEFT gives a LoRA module, and the key of rank_pattern that says so."""
        key = self._ranks.first(module)
        return int(self.rank_pattern[key]) if key is not None and self.rank_pattern else int(self.r or 0), key

    def scale_of(self, module: str, rank: int) -> float:
        """The scale alpha / rank, or alpha / sqrt(rank) under rsLoRA, for a LoRA module of this rank."""
        key = self._alphas.first(module)
        alpha = self.alpha_pattern[key] if key is not None and self.alpha_pattern else self.lora_alpha
        return float(alpha) / (rank**0.5 if self.use_rslora else rank)


def read_config(path: Path) -> AdapterConfig:
    """The configuration in an adapter's folder.

    Raises:
        RequestError: There is none.
        CheckpointError: It is of a method that has no factors, or sets a key whose effect is not known here.
    """
    file = path / CONFIG_FILE
    if not file.is_file():
        raise RequestError(f"{path}: no adapter here: there is no {CONFIG_FILE}.")
    raw = read_object(file)
    _check_type(path, file, raw)
    known = AdapterConfig.model_fields.keys() | WITHOUT_EFFECT
    for key, value in raw.items():
        if not _switched_on(value):
            continue
        if key in REFUSED:
            raise CheckpointError(f"{path}: {key} is set in {CONFIG_FILE}: {REFUSED[key]}.")
        if key not in known:
            raise CheckpointError(
                f"{path}: {CONFIG_FILE} sets {key}, which is not known here; it may change what the weights are."
            )
    # An empty loftq_config or pattern is PEFT's way to say that there is none.
    config = validate({key: value for key, value in raw.items() if value != {}}, AdapterConfig, str(file))
    _check_method(path, config)
    return config


def _switched_on(value: object) -> bool:
    return value is not None and value is not False and value not in ("", [], {})


def _check_type(path: Path, file: Path, raw: Mapping[str, Any]) -> None:
    if "peft_type" not in raw:
        raise CheckpointError(f"{file}: the key 'peft_type' is missing: it is no configuration of PEFT.")
    name = str(raw["peft_type"]).upper()
    if name in ("LORA", "ADALORA"):
        return
    what = OTHER_TYPES.get(name, "a type that is not known here")
    raise CheckpointError(
        f"{path}: an adapter of type {str(raw['peft_type'])[:60]} ({what}); only LORA and ADALORA are read, which are "
        "low rank."
    )


def _check_method(path: Path, config: AdapterConfig) -> None:
    file = path / CONFIG_FILE
    needed = "init_r" if config.adalora else "r"
    if getattr(config, needed) is None:
        raise CheckpointError(f"{file}: the key {needed!r} is missing.")
    if not config.adalora:
        wrong = {
            key: value for key, value in (config.rank_pattern or {}).items() if type(value) is not int or value < 1
        }
        for key, value in wrong.items():
            raise CheckpointError(f"{file}: rank_pattern gives {key[:80]!r} the rank {str(value)[:40]}, which is none.")
        if config.start not in (*BASE_UNCHANGED, *BASE_REDUCED, "loftq"):
            raise CheckpointError(
                f"{path}: init_lora_weights {config.init_lora_weights!r} may have changed the base in a way not known "
                "here; compare the merged checkpoint with the base instead (glmspectra delta BASE MERGED)."
            )
    if config.bias not in (None, "none", "all", "lora_only"):
        raise CheckpointError(f"{file}: bias is {config.bias!r}; PEFT knows none, all and lora_only.")
    variants = [key for key in ("use_dora", "kasa_config", "use_bdlora") if _switched_on(getattr(config, key))]
    if len(variants) > 1 or (config.adalora and variants):
        shown = " and ".join(["ADALORA", *variants] if config.adalora else variants)
        raise CheckpointError(f"{file}: {shown} exclude each other; PEFT would refuse to load it.")
    if config.target_parameters and (variants or config.adalora or config.start in (*BASE_REDUCED, "loftq")):
        method = config.start if config.start in (*BASE_REDUCED, "loftq") else (variants or ["ADALORA"])[0]
        raise CheckpointError(f"{file}: target_parameters together with {method}; PEFT makes no such adapter.")
    if config.kasa_config is not None and config.start not in BASE_UNCHANGED:
        raise CheckpointError(f"{path}: KaSA on a base changed by {config.start} is not read.")
