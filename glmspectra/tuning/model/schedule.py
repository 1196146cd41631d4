"""AdaLoRA's schedule in optimizer steps, from the shares or steps that the settings give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from glmspectra.errors import ConfigError

if TYPE_CHECKING:
    from glmspectra.tuning.settings.models import LoraArgs


@dataclass
class Schedule:
    """AdaLoRA's three phases in optimizer steps: warm-up to `tinit`, falling to `total - tfinal`, then fixed."""

    total: int
    tinit: int
    tfinal: int


def resolve_schedule(lora: LoraArgs, total: int) -> Schedule:
    """AdaLoRA's phases for a run of `total` steps; `tinit` and `tfinal` below 1 are shares of it.

    Raises ConfigError when no step is left in which ranks could fall.
    """

    def steps(value: float) -> int:
        return round(value * total) if isinstance(value, float) and value < 1 else int(value)

    tinit, tfinal = steps(lora.tinit), steps(lora.tfinal)
    if tinit + tfinal >= total:
        raise ConfigError(
            f"AdaLoRA: tinit {tinit} and tfinal {tfinal} leave none of the {total} steps of this run for ranks to "
            "fall in; lower them (lora_args.json), or train for longer."
        )
    return Schedule(total, tinit, tfinal)
