"""What identifies a run of changes: the files of all its states, their fingerprints, and the base."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from glmspectra.checkpoint import Checkpoint
from glmspectra.checkpoint.fingerprint import fingerprint_file, fingerprint_set
from glmspectra.checkpoint.selection import left_out_facts
from glmspectra.store import Source
from glmspectra.sweep.delta_states import State


def source_of(base: Checkpoint | None, states: list[State], tuned: Path | str) -> Source:
    """The run's identity: the content of all states.

    The base is stored in the details, as `suggest-rank` needs it.
    """
    files = list(_files(states))
    path = Path(tuned).resolve()
    name = path.name if path.is_dir() else path.stem
    if name.startswith(("checkpoint-", "LoraAdapter", "final_adapter")):
        name = f"{path.parent.name}_{name}"
    details: dict[str, Any] = {
        "base": None if base is None else {"name": base.name, "fingerprint": base.fingerprint, "path": str(base.path)},
        "states": [{"path": str(s.where.path), "step": s.where.step, "kind": s.tuned_by} for s in states],
    }
    if base is not None and (found := left_out_facts(base)):
        details["left_out"] = found
    fingerprint = fingerprint_set((file["name"], file["size"], file["fingerprint"]) for file in files)
    file_format = "adapter" if all(state.adapter is not None for state in states) else "difference"
    return Source(name, fingerprint, str(path), file_format, tuple(files), details)


def _files(states: list[State]) -> Iterator[dict[str, Any]]:
    for state in states:
        step = "final" if state.where.step is None else f"step {state.where.step}"
        if state.checkpoint is not None:
            for record in state.checkpoint.files:
                yield {"name": f"{step}: {record.name}", "size": record.size, "fingerprint": record.fingerprint}
            continue
        adapter = state.adapter
        start = adapter.start.path if adapter is not None and adapter.start is not None else None
        for word, folder in ((step, state.where.path), (f"{step}, start", start)):
            for path in _parts_of(folder) if folder is not None else ():
                if path.is_file():
                    size = path.stat().st_size
                    yield {"name": f"{word}: {path.name}", "size": size, "fingerprint": fingerprint_file(path)}


def _parts_of(adapter: Path) -> list[Path]:
    """The files of an adapter: those of its folder, or itself."""
    return [adapter] if adapter.is_file() else sorted(adapter.glob("adapter_*"))
