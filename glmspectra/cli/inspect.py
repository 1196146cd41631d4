"""`glmspectra inspect`: what is in a checkpoint, and what a run over it will cost."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from glmspectra.cli.options import Device, Json, Model, Out, Quiet
from glmspectra.cli.selection_options import Exclude, Include, Layers, Matrices, SplitHeads, SplitParts, split_of
from glmspectra.language import both, text
from glmspectra.progress import bytes_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.table import Table

    from glmspectra.checkpoint import Checkpoint, TensorRecord
    from glmspectra.checkpoint.inventory import TensorGroup
    from glmspectra.checkpoint.records import Split
    from glmspectra.sweep.cost import SelectionCost


NUMBERS = ("layer", "count", "bytes", "flop")  # columns set flush right


def inspect(
    model: Model = None,
    layers: Layers = "all",
    matrices: Matrices = None,
    include: Include = None,
    exclude: Exclude = None,
    split: SplitParts = False,
    heads: SplitHeads = False,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor, not groups of like ones.")] = False,
    out: Out = None,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """What is in a checkpoint: tensors, shapes, types, bytes, and what `svd` over the selection will cost.

    Only headers are read. --out names a file for the JSON object, which lists every tensor.
    """
    from dataclasses import asdict

    from glmspectra.checkpoint import open_checkpoint, select
    from glmspectra.checkpoint.inventory import tensor_groups
    from glmspectra.checkpoint.selection import left_out, left_out_sentence
    from glmspectra.cli.console import finish
    from glmspectra.cli.model_choice import choose_model
    from glmspectra.json_files import write_json
    from glmspectra.sweep.cost import selection_cost

    parts = split_of(split, heads)
    with open_checkpoint(choose_model(model)) as checkpoint:
        records = list(checkpoint.tensors.values())
        chosen = select(checkpoint, layers, matrices, include or (), exclude or ())
        where, available = _available_memory(device)
        cost = selection_cost(chosen, parts, where, _solved_together(where))
        listing = _tensor_table(checkpoint) if tensors else _group_table(checkpoint)
        result: dict[str, Any] = {
            "checkpoint": checkpoint.name,
            "path": str(checkpoint.path),
            "form": checkpoint.format,
            "model_type": checkpoint.config.get("model_type"),
            "files": checkpoint.file_sizes,
            "parameters": sum(group.parameters for group in tensor_groups(records)),
            "bytes": sum(record.nbytes for record in records),
            "kinds": [_group_facts(group) for group in tensor_groups(records)],
            "tensors": [_tensor_facts(record, parts) for record in records],
            "svd": asdict(cost) | {"kinds": [_group_facts(group) for group in tensor_groups(chosen)]},
            "not_measured": left_out(checkpoint),
            "unreadable": {record.name: record.fault for record in records if record.is_matrix and record.fault},
            "device": where,
            "memory_available": available,
        }
        beside = left_out_sentence(checkpoint)
    if out is not None:
        write_json(out, result)
    lines: list[Any] = [_summary(result), *([] if quiet else [listing]), _cost_lines(cost, where, available)]
    lines += [beside] if beside else []
    finish(result, [*lines, *_unreadable_lines(result["unreadable"])], as_json)


def _unreadable_lines(faults: dict[str, str]) -> list[str]:
    if not faults:
        return []
    name, reason = next(iter(faults.items()))
    return [text("terminal-unreadable", count=len(faults), name=name, reason=reason)]


def _tensor_facts(record: "TensorRecord", split: "Split") -> dict[str, Any]:
    return {
        "name": record.name,
        "layer": record.layer,
        "matrix": record.matrix,
        "shape": record.shape,
        "dtype": record.dtype,
        "quantization": record.quantization,
        "bytes": record.nbytes,
        "file": record.file,
        "parts": [part.name for part in record.parts(split)],
    }


def _group_facts(group: "TensorGroup") -> dict[str, Any]:
    """A group of tensors as the JSON object has it, with the operations of its spectra."""
    from dataclasses import asdict

    from glmspectra.sweep.cost import spectrum_flops

    facts = asdict(group)
    return facts | {"flops": spectrum_flops(facts.pop("sides"))}


def _summary(result: dict[str, Any]) -> str:
    files = result["files"]
    return text(
        "inspect-summary",
        name=result["checkpoint"],
        type=result["model_type"] or both("inspect-no-type"),
        format=result["form"],
        files=both("inspect-files", count=len(files)),
        bytes=bytes_text(sum(files.values())),
        tensors=len(result["tensors"]),
        parameters=result["parameters"],
    )


def _cost_lines(cost: "SelectionCost", where: str, available: int | None) -> str:
    matrices = both("terminal-matrices", count=cost.matrices)
    if cost.spectra != cost.matrices:
        matrices = both("inspect-with-parts", matrices=matrices, spectra=cost.spectra)
    values: dict[str, Any] = {
        "matrices": matrices,
        "bytes": bytes_text(cost.nbytes),
        "flop": _flop(cost.flops),
        "memory": bytes_text(cost.memory),
        "device": where,
        "largest": cost.largest,
    }
    if available is None:
        return text("inspect-cost", **values)
    said = both("inspect-cost-free", **values, free=bytes_text(available))
    if cost.memory > available:
        said += both("inspect-too-large", largest=cost.largest)
    return said.shown


def _group_table(checkpoint: "Checkpoint") -> "Table":
    """Matrices, like ones in one row, then one row for what has not two dimensions.

    Norms, biases, tables of angles.
    """
    from glmspectra.checkpoint.inventory import tensor_groups
    from glmspectra.sweep.cost import spectrum_flops

    table = _table("matrix", "layers", "shape", "dtype", "count", "bytes", "flop")
    found = tensor_groups(checkpoint.tensors.values())
    others = [group for group in found if not group.sides and len(group.shape) != 2]
    for group in found:
        if group not in others:
            table.add_row(
                group.matrix,
                group.layers or "-",
                _shape(group.shape),
                group.quantization or group.dtype,
                str(group.count),
                bytes_text(group.nbytes),
                _flop(spectrum_flops(group.sides)) if group.sides else "-",
            )
    if others:
        dtypes = ", ".join(sorted({group.dtype for group in others}))
        count, nbytes = sum(group.count for group in others), sum(group.nbytes for group in others)
        table.add_row(text("inspect-no-matrices"), "", "", dtypes, str(count), bytes_text(nbytes), "-")
    return table


def _tensor_table(checkpoint: "Checkpoint") -> "Table":
    several = len(checkpoint.file_sizes) > 1
    table = _table("layer", "name", "shape", "dtype", "bytes", *(["file"] if several else []))
    for record in checkpoint.tensors.values():
        table.add_row(
            "-" if record.layer is None else str(record.layer),
            record.name,
            _shape(record.shape),
            record.quantization or record.dtype,
            bytes_text(record.nbytes),
            *([record.file] if several else []),
        )
    return table


def _table(*columns: str) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        head = text(f"inspect-head-{column}")
        if column in NUMBERS:
            table.add_column(head, justify="right", no_wrap=True)
        else:  # names are broken where the window is narrow, numbers never cut
            table.add_column(head, overflow="fold", no_wrap=column not in ("matrix", "name", "file"))
    return table


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or text("inspect-scalar")


def _flop(count: float) -> str:
    for unit in ("", "k", "M", "G"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.4g} T"


def _solved_together(device: str) -> "Callable[[int, int], int]":
    """How many matrices of an order, each of so many bytes, `svd` solves together on the device."""
    if device == "cpu":
        return lambda order, nbytes: 1
    import torch

    from glmspectra.spectra.batched_eigenvalues import batch_limit

    return lambda order, nbytes: batch_limit(order, nbytes, torch.device(device))


def _available_memory(wanted: str) -> tuple[str, int | None]:
    """The device that a run would take, and the bytes free on it (None where the system does not tell)."""
    from glmspectra.device import device_name

    device = device_name(wanted)
    if device != "cpu":
        import torch

        return device, torch.cuda.mem_get_info(torch.device(device))[0]
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":", 1) for line in file)
        return device, int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return device, None
