"""Ranks for a model from Python: what `suggest-rank` does, from the base's tables, its pilots and earlier trainings."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from glmspectra.errors import ConfigError, RequestError
from glmspectra.json_files import read_bytes
from glmspectra.ranks import Suggestion
from glmspectra.ranks.request import RankRequest, evidence_and_budget, suggest_ranks
from glmspectra.store import Run, read_run

if TYPE_CHECKING:
    from glmspectra.checkpoint import Checkpoint
    from glmspectra.loop.portfolio import Portfolio
    from glmspectra.store import RunStore

TABLES = "param_matrix"


@dataclass(frozen=True)
class Sources:
    """What ranks are chosen from.

    Attributes:
        model: The base checkpoint.
        root: Where tables, pilots and reports lie.
        deltas: Earlier trainings: adapters, runs, tuned models, or tables of `delta`.
        pilot_steps: Train pilots of so many steps first; None for none.
        pilot_seeds: How many, averaged.
        args: The settings files that pilots and gradients are trained by.
        quantized: Measure W - Q(W) first, for `quantisation`: nf4, fp4, int8 or int4.
        gradient_batches: Measure the loss gradient over so many batches first, for `gradient`.
        device, quiet: As everywhere.
    """

    model: Path
    root: Path = Path()
    deltas: Sequence[Path] = ()
    pilot_steps: int | None = None
    pilot_seeds: int = 1
    args: Path = Path("args_file")
    quantized: str | None = None
    gradient_batches: int | None = None
    device: str = "auto"
    quiet: bool = False


@dataclass(frozen=True)
class Suggested:
    """What was found.

    Attributes:
        suggestion: The ranks by the chosen criterion, all others beside it.
        tables: The run's folder they are written to.
        portfolio: The test that chose, where pilots were trained and no criterion was asked for.
        left_out: What of the model is not measured, as a sentence.
    """

    suggestion: Suggestion
    tables: Path
    portfolio: "Portfolio | None"
    left_out: str | None


def suggest_for_model(sources: Sources, request: RankRequest) -> Suggested:
    """Measure what is asked for, train pilots where asked, let held-out loss choose a criterion where none is named.

    Raises:
        RequestError: The base is not measured and no change is given, or what `suggest_ranks` refuses.
    """
    base, left_out = _base(sources, request)
    folders = list(sources.deltas)
    pilots = _pilots(sources, base, request) if sources.pilot_steps is not None and base is not None else []
    deltas = [_delta_run(sources, folder) for folder in [*folders, *pilots]]
    suggestion = suggest_ranks(base, deltas, request)
    portfolio = None
    if pilots and sources.pilot_steps is not None and request.criterion is None:
        portfolio = _test(sources, suggestion, pilots[0], sources.pilot_steps * len(pilots))
        if portfolio is not None and portfolio.chosen != suggestion.criterion:
            suggestion = suggest_ranks(base, deltas, replace(request, criterion=portfolio.chosen))
    return Suggested(suggestion, base.folder if base is not None else deltas[0].folder, portfolio, left_out)


def _test(sources: Sources, suggestion: Suggestion, pilot: Path, steps: int) -> "Portfolio | None":
    from glmspectra.loop.pilot import ADAPTER_FOLDER
    from glmspectra.loop.portfolio import try_menu
    from glmspectra.tuning.settings.load import load_settings

    settings = load_settings(sources.args, [f"finetune.model_path={json.dumps(str(sources.model))}"])
    return try_menu(settings, pilot / ADAPTER_FOLDER, suggestion.allocations, steps, sources.device)


def _base(sources: Sources, request: RankRequest) -> tuple[Run | None, str | None]:
    """The model's tables, None where it is not measured and a change is there instead; what of it is left out."""
    from glmspectra.checkpoint import open_checkpoint
    from glmspectra.checkpoint.selection import left_out_sentence
    from glmspectra.store import RunStore
    from glmspectra.sweep import source_of

    with open_checkpoint(sources.model) as checkpoint:
        store = RunStore.of(sources.root / TABLES, source_of(checkpoint))
        _measure_more(sources, request, checkpoint, store)
        left_out = left_out_sentence(checkpoint)
    base = read_run(store.folder) if (store.folder / "manifest.json").is_file() else None
    if base is not None and not (base.matrices["quantity"] == "weight").any():
        base = None
    if base is None and (sources.pilot_steps is not None or not sources.deltas):
        at = f" --out {sources.root}" if sources.root != Path() else ""
        raise RequestError(
            f"{sources.model} is not measured yet (no {store.folder}): run `glmspectra svd --layers all --model "
            f"{sources.model}{at}` first, or name an adapter with --delta."
        )
    return base, left_out


def _measure_more(sources: Sources, request: RankRequest, checkpoint: "Checkpoint", store: "RunStore") -> None:
    """The error of quantization and the loss gradient of the targets, where they are asked for."""
    from glmspectra.checkpoint import select

    if sources.quantized is not None:
        from glmspectra.sweep.quantization import sweep_quantization_error

        records = select(checkpoint, "all", request.targets)
        sweep_quantization_error(
            checkpoint, records, sources.quantized, store, device=sources.device, quiet=sources.quiet
        )
    if sources.gradient_batches is not None:
        from glmspectra.loop.gradients import measure_gradients
        from glmspectra.tuning.settings.load import load_settings

        settings = load_settings(sources.args, [f"finetune.model_path={json.dumps(str(sources.model))}"])
        records = select(checkpoint, "all", request.targets)
        measure_gradients(settings, checkpoint, records, sources.gradient_batches, store, sources.device)


def _pilots(sources: Sources, base: Run, request: RankRequest) -> list[Path]:
    """Train the pilots under root/runs/pilots; their folders. Finished ones of the same facts are not run again.

    The facts, of which the folder's name holds a digest: base, steps, budget, targets and settings files.
    """
    from glmspectra.loop.pilot import run_pilots

    evidence, budget = evidence_and_budget(base, [], replace(request, criterion=None, step=None))
    steps = sources.pilot_steps or 0
    settings = [
        read_bytes(path, ConfigError).decode(errors="replace") for path in sorted(sources.args.glob("*_args.json"))
    ]
    facts = [steps, budget.parameters, [target.name for target in evidence.targets], settings]
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:8]
    out = sources.root / "runs" / "pilots" / f"{base.folder.name}-{steps}-steps-{digest}"
    return run_pilots(
        out,
        sources.model,
        sources.args,
        evidence,
        budget,
        steps,
        sources.pilot_seeds,
        device=sources.device,
        quiet=sources.quiet,
    )


def _delta_run(sources: Sources, tuned: Path) -> Run:
    """Tables of a change: read where it is a run of `delta`, measured into root/param_matrix otherwise."""
    from glmspectra.sweep.delta import measure_change
    from glmspectra.sweep.delta_plan import DeltaOptions

    if (tuned / "manifest.json").is_file():
        return read_run(tuned)
    asked = DeltaOptions(device=sources.device, quiet=sources.quiet)
    return measure_change(sources.model, tuned, sources.root / TABLES, asked)[0]
