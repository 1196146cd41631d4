"""The ranks file that `glmspectra suggest-rank` writes, taken into `lora_args` by `--ranks`."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from glmspectra.errors import ConfigError
from glmspectra.json_files import read_object
from glmspectra.tuning.settings.files import Section

VERSION = 1


class RanksBase(BaseModel):
    """The checkpoint whose spectra gave the ranks."""

    model_config = ConfigDict(extra="allow", strict=True)
    name: str
    fingerprint: str


class RanksLora(BaseModel):
    """The suggested ranks as settings of LoRA; further keys are `lora_args` too."""

    model_config = ConfigDict(extra="allow", strict=True)
    r: int = Field(ge=1)
    target_modules: list[str] | str
    rank_pattern: dict[str, int] = {}
    alpha_pattern: dict[str, int | float] = {}


class RanksAdaLora(BaseModel):
    """The suggested ranks as settings of AdaLoRA; further keys are allowed."""

    model_config = ConfigDict(extra="allow", strict=True)
    init_r: int = Field(ge=1)
    target_r: int = Field(ge=1)
    start_ranks: dict[str, int] = {}


class RanksFile(BaseModel):
    """The whole file; keys beyond these (criterion, budget, ranks) are for people to read."""

    model_config = ConfigDict(extra="allow", strict=True)
    glmspectra_ranks: int
    base: RanksBase
    lora_args: RanksLora
    adalora: RanksAdaLora | None = None


def read_ranks(path: Path) -> RanksFile:
    """Read and check a ranks file.

    Raises:
        ConfigError: the file is absent, not JSON, of another version, or lacks a key.
    """
    if not path.exists():
        raise ConfigError(f"ranks {path}: there is no such file; `glmspectra suggest-rank` writes one.")
    raw = read_object(path, ConfigError)
    if raw.get("glmspectra_ranks") != VERSION:
        raise ConfigError(
            f'ranks {path}: is no ranks file of version {VERSION} (key "glmspectra_ranks"); '
            "`glmspectra suggest-rank` writes one."
        )
    try:
        return RanksFile.model_validate(raw)
    except ValidationError as error:
        item = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in item["loc"])
        raise ConfigError(f"ranks {path}: key {where}: {item['msg']}; write the file anew with suggest-rank.") from None


def apply_ranks(ranks: RanksFile, source: str, adaptive: bool, lora: Section) -> None:
    """Put the ranks into the raw `lora_args`: ranks a matrix for LoRA, start ranks and budget for AdaLoRA.

    What stood there of rank, alpha, patterns and targets is replaced, since half of one choice of ranks and half of
    another would be neither.
    """
    replaced = (
        "r",
        "target_modules",
        "exclude_modules",
        "rank_pattern",
        "alpha_pattern",
        "init_r",
        "target_r",
        "start_ranks",
    )
    for key in replaced:
        if key in lora.values:
            lora.drop(key)
    values = ranks.lora_args.model_dump()
    if adaptive:
        if ranks.adalora is None:
            raise ConfigError(
                f"{source}: has no part adalora, which method adalora needs; write it anew with suggest-rank."
            )
        values = {"target_modules": values["target_modules"], **ranks.adalora.model_dump()}
    for key, value in values.items():
        lora.put(key, value, source)
    lora.put("ranks_base", {"name": ranks.base.name, "fingerprint": ranks.base.fingerprint}, source)
