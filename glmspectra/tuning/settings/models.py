"""The keys of `finetune_args.json` and `lora_args.json`: type, default, what each takes and what it means."""

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator

Method = Literal["lora", "qlora", "adalora", "qadalora"]
Share = Annotated[float, Field(ge=0, lt=1)]
Rank = Annotated[int, Field(ge=1)]


def _key(default: Any, allowed: str, meaning: str, **constraints: Any) -> Any:
    """A field with its default, the sentence of what it takes (said in faults) and what it means."""
    return Field(default, description=meaning, json_schema_extra={"allowed": allowed}, **constraints)


_SWITCH = "true or false"
_FLOATS = "one of auto, float32, bfloat16, float16"


Template = Literal["auto", "plain", "chat"]
ColumnRole = Literal["context", "target", "messages", "input", "system", "history", "tools"]
ColumnNames = dict[ColumnRole, str]


def parse_columns(text: str) -> dict[str, str]:
    """The names in `context=question,target=answer`, as `--columns` takes them.

    Raises:
        ValueError: An entry is not ROLE=COLUMN with a role that there is, each once.
    """
    found: dict[str, str] = {}
    for pair in text.split(","):
        role, _, column = (part.strip() for part in pair.partition("="))
        if not column or role not in get_args(ColumnRole) or role in found:
            raise ValueError(
                f"{pair.strip() or 'an empty entry'} is not ROLE=COLUMN with one of the roles "
                f"{', '.join(get_args(ColumnRole))}, each once"
            )
        found[role] = column
    return found


class DataSource(BaseModel):
    """One of several data sets."""

    model_config = ConfigDict(extra="forbid", strict=True)

    path: str
    weight: float = Field(
        default=1.0, gt=0, le=1000, description="How often each row stands in one pass over the data."
    )
    columns: ColumnNames | None = None
    template: Template = "auto"


_SOURCES = (
    "the path of a data file or folder, or a list of paths and of objects such as "
    '{"path": "a.jsonl", "weight": 2, "columns": {"context": "question", "target": "answer"}, "template": "chat"}'
)


class FinetuneArgs(BaseModel):
    """`finetune_args.json`: data, model, base precision, where the result goes."""

    model_config = ConfigDict(extra="forbid", strict=True)

    dataset_path: str | Annotated[list[str | DataSource], Field(min_length=1)] = _key(
        ...,
        _SOURCES,
        "JSONL, JSON, CSV, Parquet, Arrow, or a folder: a saved DatasetDict or train.*, valid.*; several as a list.",
    )
    valid_path: str | list[str] | None = _key(
        None,
        "the path of a data file, a list of them, or null",
        "Data to evaluate on, when dataset_path holds training data only.",
    )
    valid_fraction: float | None = _key(
        None,
        "a number above 0 and below 1, or null",
        "Share of a single file that is kept for evaluation; null: 0.05 when the run evaluates.",
        gt=0,
        lt=1,
    )
    columns: ColumnNames | None = _key(
        None,
        'an object such as {"context": "question", "target": "answer"} or {"messages": "talk"}, or null',
        "Names of columns that are not recognized: of context, target, messages, input, system, history, tools.",
    )
    on_bad_data: Literal["error", "warn"] = _key(
        "error",
        "error or warn",
        "What rows that cannot be used do: stop the run, or be left out with a warning.",
    )
    template: Template = _key(
        "auto",
        "one of auto, plain, chat",
        "plain: the context as it stands; chat: in the model's chat template; auto: what the model's family says.",
    )
    separator: str = _key(
        "\n",
        "a text, which may be empty",
        "What plain puts between question and answer where the question ends in neither white space nor a colon.",
    )
    max_length: int = _key(
        2048,
        "a whole number of at least 8",
        "Tokens of context and target together; longer pairs are cut by on_long.",
        ge=8,
    )
    on_long: Literal["cut_context", "cut_target", "drop", "error"] = _key(
        "cut_context",
        "one of cut_context, cut_target, drop, error",
        "What a pair beyond max_length loses first.",
    )
    packing: bool = _key(False, _SWITCH, "Several examples in one row, attention kept apart between them.")
    cache_dir: str | None = _key(
        None,
        "the path of a folder, or null",
        "Where tokenized data is kept; null: $XDG_CACHE_HOME/glmspectra.",
    )
    label_pad_token_id: Literal[-100] = _key(
        -100, "-100, the id that the loss leaves out", "Label of tokens that are not learnt."
    )
    model_path: str = _key(
        "nano", 'the path of a model folder or file, or "nano" for the embedded model', "The base model."
    )
    method: Method | None = _key(
        None, "one of lora, qlora, adalora, qadalora, or null", "null: qlora when load_in_4bit, else lora."
    )
    load_in_4bit: bool | None = _key(None, "true, false or null", "Quantize the base; null: as method says.")
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = _key("nf4", "nf4 or fp4", "The 4-bit grid.")
    bnb_4bit_compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] = _key(
        "auto",
        _FLOATS,
        "Precision of products with the 4-bit base; auto: bfloat16 where the hardware has it, float16 on older GPUs, "
        "float32 on a CPU.",
    )
    bnb_4bit_use_double_quant: bool = _key(
        False, _SWITCH, "Quantize the scales of the blocks too: 0.37 bits a weight less."
    )
    bnb_4bit_quant_storage: Literal["uint8", "float32", "bfloat16", "float16"] = _key(
        "uint8",
        "one of uint8, float32, bfloat16, float16",
        "Type that holds the packed bytes; FSDP wants that of the other weights.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = _key(
        "auto", _FLOATS, "Precision of weights that are not quantized; auto: as bnb_4bit_compute_dtype auto."
    )
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2", "flex_attention"] = _key(
        "sdpa", "one of sdpa, eager, flash_attention_2, flex_attention", "How attention is computed."
    )
    seed: int = _key(42, "a whole number of at least 0", "Seed of everything random.", ge=0)
    resume_from_checkpoint: bool | str | None = _key(
        None,
        "true (the last in output_dir), false, null or the path of a checkpoint",
        "Where to go on from; null: from the last checkpoint in output_dir, where the same run left one.",
    )
    early_stopping_patience: int | None = _key(
        None,
        "a whole number of at least 1, or null",
        "Stop after so many evaluations in a row without a better loss, and keep the best checkpoint; null: never.",
        ge=1,
    )
    early_stopping_threshold: float = _key(
        0.0, "a number of at least 0", "Nats a token by which a loss must be lower to be better.", ge=0
    )
    eval_samples: int = _key(
        0,
        "a whole number of at least 0",
        "Answers that are generated at each evaluation, into eval_samples.jsonl of output_dir.",
        ge=0,
    )
    eval_samples_max_new_tokens: int = _key(128, "a whole number of at least 1", "Length of such an answer.", ge=1)
    final_model_path: str | None = _key(
        None,
        "the path of a folder, or null",
        "Where the adapter is saved at the end; null: output_dir/final_adapter.",
    )

    @field_validator("bnb_4bit_compute_dtype", "dtype", "bnb_4bit_quant_storage", mode="before")
    @classmethod
    def _without_torch(cls, value: Any) -> Any:
        return value.removeprefix("torch.") if isinstance(value, str) else value

    @field_validator("columns", mode="before")
    @classmethod
    def _from_option(cls, value: Any) -> Any:
        """`context=question,target=answer`, as `--columns` takes it, is taken as well."""
        if isinstance(value, str):
            return parse_columns(value)
        return value

    @property
    def sources(self) -> list[DataSource]:
        """The data sets of `dataset_path`; what one does not name is as the whole's."""
        given = [self.dataset_path] if isinstance(self.dataset_path, str) else self.dataset_path
        found = [DataSource(path=item) if isinstance(item, str) else item for item in given]
        return [item.model_copy(update={"columns": item.columns or self.columns}) for item in found]

    @property
    def valid_sources(self) -> list[DataSource]:
        """The files of `valid_path`."""
        given = [self.valid_path] if isinstance(self.valid_path, str) else self.valid_path or []
        return [DataSource(path=path, columns=self.columns) for path in given]

    @property
    def named_sources(self) -> str:
        """The data sets in words, for messages."""
        return ", ".join(source.path for source in self.sources)


class LoraArgs(BaseModel):
    """`lora_args.json`: the adapter. Keys of AdaLoRA stand here too and are taken by its methods only."""

    model_config = ConfigDict(extra="forbid", strict=True, populate_by_name=True)

    r: int = _key(8, "a whole number of at least 1", "Rank of each matrix that rank_pattern does not name.", ge=1)
    lora_alpha: int | float = _key(
        16, "a number above 0", "The update is scaled by alpha / r (use_rslora: alpha / sqrt(r)).", gt=0
    )
    lora_dropout: float = _key(
        0.0, "a number from 0 up to, not including, 1", "Dropout before the first factor.", ge=0, lt=1
    )
    target_modules: list[str] | str | None = _key(
        None,
        'a list of module names, one regex as a string, "all-linear", or null for the family\'s own',
        "Which matrices get an adapter.",
    )
    exclude_modules: list[str] | str | None = _key(
        None, "a list of module names, one regex as a string, or null", "Which of them do not."
    )
    modules_to_save: list[str] | None = _key(
        None,
        "a list of module names, or null",
        "Modules that are trained in full and saved with the adapter.",
    )
    bias: Literal["none", "all", "lora_only"] = _key(
        "none", "one of none, all, lora_only", "Which bias vectors are trained."
    )
    inference_mode: Literal[False] = _key(
        False, "false, since true freezes the adapter", "PEFT's switch for adapters that are only read."
    )
    layers_to_transform: list[int] | int | None = _key(
        None, "a list of layer numbers, one number, or null", "Layers that get an adapter; null: all."
    )
    layers_pattern: list[str] | str | None = _key(
        None, "the name of the list of layers in the model, or null", "Where layers_to_transform counts."
    )
    adapter_name: str = _key(
        "LoraAdapter",
        "a name without / or .",
        "Folder of the adapter in each checkpoint.",
        alias="Adapter_name",
        pattern=r"^[^/\\.]+$",
    )
    rank_pattern: dict[str, Rank] = _key(
        {},
        "an object of module name or regex to a whole number of at least 1",
        "Ranks of single matrices; the first key that matches counts.",
    )
    alpha_pattern: dict[str, Annotated[int | float, Field(gt=0)]] = _key(
        {}, "an object of module name or regex to a number above 0", "Alphas of single matrices."
    )
    use_rslora: bool = _key(False, _SWITCH, "Scale by alpha / sqrt(r).")
    use_dora: bool = _key(False, _SWITCH, "Train magnitude and direction apart (DoRA).")
    init_lora_weights: bool | str = _key(
        True, "true, false, gaussian, olora, pissa, pissa_niter_N, eva or loftq", "How the factors start."
    )
    eva_rho: float = _key(2.0, "a number of at least 1", "EVA: a matrix may get up to rho times r.", ge=1)
    loftq_iter: int = _key(1, "a whole number of at least 1", "LoftQ: alternating steps.", ge=1)
    init_r: int | None = _key(
        None,
        "a whole number of at least 1",
        "AdaLoRA: largest start rank; null: half more than target_r.",
        ge=1,
    )
    target_r: int | None = _key(None, "a whole number of at least 1", "AdaLoRA: mean rank at the end; null: r.", ge=1)
    tinit: Annotated[int, Field(ge=0)] | Share = _key(
        0.1, "a whole number of steps, or a share below 1 of all steps", "AdaLoRA: steps before ranks fall."
    )
    tfinal: Annotated[int, Field(ge=0)] | Share = _key(
        0.4, "a whole number of steps, or a share below 1 of all steps", "AdaLoRA: steps after ranks stand."
    )
    delta_t: int = _key(
        1, "a whole number of at least 1", "AdaLoRA: steps between two allocations.", alias="deltaT", ge=1
    )
    beta1: float = _key(0.85, "a number above 0 and below 1", "AdaLoRA: smoothing of the sensitivity.", gt=0, lt=1)
    beta2: float = _key(0.85, "a number above 0 and below 1", "AdaLoRA: smoothing of its uncertainty.", gt=0, lt=1)
    orth_reg_weight: float = _key(0.5, "a number above 0", "AdaLoRA: weight of the orthogonal regularization.", gt=0)
    start_ranks: dict[str, Annotated[int, Field(ge=0)]] = _key(
        {},
        "an object of module name to a whole number of at least 0",
        "AdaLoRA: start rank of each matrix; others start at init_r.",
    )
    ranks_file: str | None = _key(
        None,
        "the path of a file that suggest-rank wrote, or null",
        "Ranks, alphas and targets from spectra; the same as --ranks.",
    )
    ranks_base: dict[Literal["name", "fingerprint"], str] | None = _key(
        None,
        "an object {name, fingerprint}, or null",
        "The checkpoint whose spectra gave the ranks; checked against the one trained.",
    )

    @field_validator("init_lora_weights")
    @classmethod
    def _known_start(cls, value: bool | str) -> bool | str:
        names = ("gaussian", "olora", "pissa", "eva", "loftq")
        if isinstance(value, str) and value not in names and not value.removeprefix("pissa_niter_").isdigit():
            raise ValueError("unknown")
        return value


ADALORA_KEYS = (
    "init_r",
    "target_r",
    "tinit",
    "tfinal",
    "deltaT",
    "beta1",
    "beta2",
    "orth_reg_weight",
    "start_ranks",
)
# Keys that AdaLoRA does not take, and why.
LORA_ONLY_KEYS = {
    "rank_pattern": "AdaLoRA's ranks move; give start_ranks, the start rank of each matrix",
    "alpha_pattern": "AdaLoRA scales every matrix by lora_alpha",
    "use_rslora": "AdaLoRA scales every matrix by lora_alpha",
    "use_dora": "PEFT has no AdaLoRA with DoRA",
    "eva_rho": "AdaLoRA does not start by EVA",
    "loftq_iter": "AdaLoRA does not start by LoftQ",
}
