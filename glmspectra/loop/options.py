"""What a loop is asked to do."""

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from glmspectra.errors import ConfigError, RequestError
from glmspectra.json_files import read_bytes
from glmspectra.ranks.suggest import check_criterion


@dataclass(frozen=True)
class LoopOptions:
    """out: the one folder of the loop. model: the base. args: the folder of the three JSON files that training follows.

    criterion, budget, targets: as `suggest-rank` takes them; None is its default. pilot_steps, pilot_seeds: length and
    number of the pilots. control: train uniform ranks at the same budget too, and compare. samples: answers shown side
    by side. overrides: `section.key=value` for all trainings.
    """

    out: Path
    model: Path
    args: Path
    criterion: str | None = None
    budget: str | None = None
    targets: str | None = None
    pilot_steps: int = 80
    pilot_seeds: int = 1
    control: bool = True
    samples: int = 5
    overrides: tuple[str, ...] = ()
    device: str = "auto"
    quiet: bool = False

    def __post_init__(self) -> None:
        if self.pilot_steps < 2:
            raise RequestError(f"--pilot-steps is {self.pilot_steps}; a pilot takes at least 2 steps.")
        if self.pilot_seeds < 1:
            raise RequestError(f"--pilot-seeds is {self.pilot_seeds}; at least one pilot is needed.")
        if self.criterion is not None:
            check_criterion(self.criterion)

    def identity(self) -> dict[str, Any]:
        """The options that decide the results; a folder holds the stages of one such set."""
        plain = {key: value for key, value in asdict(self).items() if key not in ("out", "device", "quiet")}
        plain["model"], plain["args"] = str(self.model), str(self.args)
        plain["overrides"] = list(self.overrides)
        plain["settings"] = self._settings_digest()
        return plain

    def _settings_digest(self) -> str:
        """Of the contents of the three JSON files: changed settings are other trainings."""
        digest = hashlib.sha256()
        for path in sorted(self.args.glob("*_args.json")):
            digest.update(path.name.encode() + b"\0" + read_bytes(path, ConfigError))
        return digest.hexdigest()[:16]
