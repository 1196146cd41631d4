"""Where a run begins: anew, at its last whole checkpoint, or not at all, since its folder holds it finished."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmspectra.errors import RequestError
from glmspectra.language import text
from glmspectra.tuning.training.arguments import ADAPTER_CONFIG
from glmspectra.tuning.training.checkpoints import STATE_FILE, checkpoints, damage_of, newest_whole
from glmspectra.tuning.training.record import RECORD_FILE, Difference, RunRecord, differences

if TYPE_CHECKING:
    from glmspectra.tuning.settings.load import Settings


@dataclass(frozen=True)
class Start:
    """Where a run begins.

    Attributes:
        checkpoint: what the run goes on from, None for the first step.
        finished: the result of the same run, where it is done already.
        notes: lines for the user.
    """

    checkpoint: Path | None = None
    finished: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)


def choose_start(settings: Settings, record: RunRecord, allow_changed: bool = False) -> Start:
    """Where the run that is asked for begins, by its settings and by what its folder holds.

    A folder belongs to one run. The same run goes on from its last whole checkpoint, or is finished; another one is
    refused, unless what differs changes no number or `allow_changed` says that it may.

    Args:
        settings: Of the run; `resume_from_checkpoint` is null (go on if there is something), true (there must be),
            false (there must not be) or a checkpoint, of any folder.
        record: Of the run.
        allow_changed: Go on although settings or data differ from what the run began with.

    Raises:
        RequestError: Another run is there, every checkpoint is damaged, or what `resume_from_checkpoint` names is not.
    """
    output, wanted = Path(settings.train.output_dir), settings.resume
    must = wanted is True or str(wanted).lower() == "true"
    named = Path(wanted) if isinstance(wanted, str) and not must else None
    holds_run = any((output / name).is_file() for name in (RECORD_FILE, STATE_FILE)) or bool(checkpoints(output))
    if named is not None:
        _check_named(named)
    elif not holds_run:
        _check_wanted(must, output)
        return Start()
    elif wanted is False:
        raise RequestError(
            f"{output} holds a run already, and resume_from_checkpoint is false: move it aside with --overwrite, or "
            "name another folder."
        )
    origin = named.parent if named is not None else output
    notes, changed = _compare(settings, record, origin, allow_changed)
    if named is not None:
        return Start(named, notes=notes)
    before = RunRecord.read(output)
    if before is not None and before.finished and not changed and (settings.final_adapter / ADAPTER_CONFIG).is_file():
        return Start(finished=before.finished, notes=notes)
    found, damaged = newest_whole(output)
    if found is None and damaged:
        raise RequestError(
            f"{output}: no checkpoint is whole. {' '.join(words.en for words in damaged)} Begin anew with --overwrite, "
            "which moves the folder aside."
        )
    if found is None:
        _check_wanted(must, output)
    elif settings.train.save_only_model:
        raise RequestError(
            f"{found} was saved without the optimizer's state (save_only_model), so the run cannot go on from it: "
            "begin anew with --overwrite."
        )
    where = text("training-goes-on", path=str(found)) if found else text("training-begins", path=str(output))
    return Start(found, notes=[*notes, *(words.shown for words in damaged), where])


def move_aside(folder: Path) -> Path | None:
    """Rename a folder to the first free NAME.1, NAME.2 ...; returns its new path, None where nothing was there."""
    if not folder.exists():
        return None
    number = 1
    while (target := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    folder.rename(target)
    return target


def _check_wanted(must: bool, output: Path) -> None:
    if must:
        raise RequestError(f"resume_from_checkpoint is true, and {output} holds no checkpoint to go on from.")


def _check_named(checkpoint: Path) -> None:
    if not (checkpoint / STATE_FILE).is_file():
        raise RequestError(f"resume_from_checkpoint {checkpoint}: no {STATE_FILE} there, so it is no whole checkpoint.")
    if damage := damage_of(checkpoint):
        raise RequestError(f"resume_from_checkpoint {checkpoint} is damaged: {damage.en}.")


def _compare(settings: Settings, record: RunRecord, origin: Path, allow_changed: bool) -> tuple[list[str], bool]:
    """Notes on what differs from the run in `origin`, and whether any of it changes numbers.

    Raises RequestError where it does and may not.
    """
    if RunRecord.read(origin) is None:
        unknown = f"{origin} holds a run that says not what it was trained on ({RECORD_FILE} is not there)"
        if not allow_changed:
            raise RequestError(
                f"{unknown}: go on all the same with --allow-changed, move it aside with --overwrite, or name another "
                "folder."
            )
        return [text("training-unknown-origin", path=str(origin), file=RECORD_FILE)], True
    found = differences(settings, record, origin)
    changing = [item for item in found if not item.harmless]
    if changing and not allow_changed:
        raise RequestError(_refusal(origin, found, changing))
    return [text("training-differs", what=str(item)) for item in found], bool(changing)


def _refusal(origin: Path, found: list[Difference], changing: list[Difference]) -> str:
    also = [item for item in found if item.harmless]
    more = f" (and, without changing what is learnt: {'; '.join(map(str, also))})" if also else ""
    return (
        f"{origin} holds a run that began with other settings: {'; '.join(map(str, changing))}{more}. Name another "
        "folder, move the run aside with --overwrite, or go on with what is changed with --allow-changed."
    )


@contextmanager
def absent_again(folder: Path) -> Iterator[None]:
    """Remove `folder` and its parents again, as far as they were not there before and nothing was written into them."""
    absent = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    finally:
        for path in absent:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
