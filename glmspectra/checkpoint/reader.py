"""A checkpoint: an index of where each tensor is, and the reading of one at a time.

Where a tensor is (plain records, made from headers) and how it is read (one class a file format) are separate
things. Tensors are mapped from their files, so that reading copies nothing; `release` gives the pages back.
"""

from __future__ import annotations

import difflib
import re
import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from glmspectra.checkpoint.fingerprint import check_unchanged, fingerprint_file, fingerprint_set, identity_of
from glmspectra.checkpoint.formats import mapped
from glmspectra.checkpoint.formats.logical import Logical
from glmspectra.checkpoint.formats.safetensors_file import SafetensorsFile
from glmspectra.checkpoint.formats.table import assemble, is_companion
from glmspectra.checkpoint.geometry import geometry_of, outputs_first
from glmspectra.checkpoint.heads import fused_parts, head_parts, heads_of
from glmspectra.checkpoint.locate import Located, locate, refuse_pointer
from glmspectra.checkpoint.names import IN_LAYERS, TABLES, ParsedName, of_trainers, parse_name
from glmspectra.checkpoint.records import FileRecord, StoredTensor, TensorRecord
from glmspectra.errors import CheckpointError, RequestError
from glmspectra.files import readable
from glmspectra.json_files import read_object

if TYPE_CHECKING:
    import torch

# Experts whose gate and up matrices are stored as one, by the names in use.
EXPERTS_GATE_UP = re.compile(r"(gate_up_proj|gate_up|input_linear|gate_and_up|w13)(\.weight|_weight)?$")


class WeightFile(Protocol):
    """What each file format offers."""

    path: Path
    entries: dict[str, StoredTensor]

    def read(self, name: str) -> torch.Tensor: ...

    def close(self) -> None: ...


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a model folder, an index file or one file of weights; only headers are read.

    Raises:
        RequestError: there is nothing at the path.
        CheckpointError: what is there is empty, incomplete, damaged, contradictory, or unsafe to open.
    """
    path = Path(path).expanduser()
    try:
        return Checkpoint(locate(path), path)
    except OSError as error:
        raise CheckpointError(f"{error.filename or path} cannot be read: {error.strerror}.") from error


class Checkpoint:
    """An opened checkpoint; use it as a context manager, or call `close`.

    Attributes:
        path: as given. name: of the folder or file, to call runs by.
        format: `safetensors`, `bin`, `gguf` or `adapter`.
        config: config.json (adapter_config.json of an adapter) as a dictionary; {} without one.
        stored: every tensor as the files hold it, scales of quantized weights included.
        tensors: logical tensors in depth order, by name.
        beside: names of other files of weights in the folder that was given, which are not read.

    `read` and `release` may be called from several threads.
    """

    beside: Sequence[str] = ()  # a model in memory has no files
    _metadata: Mapping[str, str] = {}

    def __init__(self, located: Located, path: Path):
        self.path = path
        self.format = located.format
        self.folder = located.folder
        self.name = _name_of(path)
        self.beside = located.beside() if path.is_dir() else []
        self._located = located
        self._lock = threading.Lock()
        self._mapped: dict[tuple[str, int | None], dict[str, torch.Tensor]] = defaultdict(dict)
        self._identities = {file: identity_of(file) for file in located.files}
        self._files = {file.name: _open_file(file) for file in located.files}
        headers = [getattr(file, "metadata", {}) for file in self._files.values()]
        self._metadata = {name: said for header in headers for name, said in header.items()}
        self._index(_merge(located, self._files), self._read_config())

    def _index(self, stored: dict[str, StoredTensor], config: dict[str, Any]) -> None:
        """Make the logical tensors and their records of what is stored."""
        self.stored, self.config = stored, config
        self._of_trainers = of_trainers(stored)
        weights = {name: entry for name, entry in stored.items() if name not in self._of_trainers}
        if stored and not weights:
            name, reason = next(iter(self._of_trainers.items()))
            raise CheckpointError(f"{self.path} holds no weights; {name}: {reason}.")
        self._logical = assemble(weights, config, self.read_stored, str(self._config_path), self._metadata)
        self.tensors = _records(self._logical, config)

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Unmap the files. Tensors already read stay valid for as long as they are held."""
        with self._lock:
            self._mapped.clear()
            for file in self._files.values():
                file.close()

    @cached_property
    def beside_weights(self) -> dict[str, str]:
        """What the files hold beside the weights and is not read, and why."""
        found = dict(self._of_trainers)
        for file in self._files.values():
            found |= getattr(file, "beside", {})
        return found

    @property
    def file_sizes(self) -> dict[str, int]:
        """Bytes of each file of weights, without reading them (as `files` does, for the fingerprints)."""
        return {path.name: path.stat().st_size for path in self._located.files}

    @cached_property
    def files(self) -> list[FileRecord]:
        """The files of weights with sizes in bytes and fingerprints (files over 64 MiB are sampled)."""
        records = []
        for path in self._located.files:
            status = path.stat()
            records.append(FileRecord(path.name, status.st_size, fingerprint_file(path), status.st_mtime_ns))
        self.check_unchanged()  # the fingerprint is of the files that were opened
        return records

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits from the names, sizes and sampled content of the files."""
        return fingerprint_set((file.name, file.size, file.fingerprint) for file in self.files)

    def check_unchanged(self, name: str | None = None) -> None:
        """See that the files are still those that were opened: of the same size, time of change and inode.

        Args:
            name: Only the files of this tensor; None: all.

        Raises:
            CheckpointError: One was changed, replaced or removed meanwhile.
        """
        wanted = None if name is None else {self.stored[part].file for part in self._logical[name].components}
        check_unchanged(
            {file: known for file, known in self._identities.items() if wanted is None or file.name in wanted}
        )

    def read(self, name: str) -> torch.Tensor:
        """One logical tensor on the CPU, contiguous.

        As stored, mapped from its file, when it is not quantized (copied only when it was stored with
        strides); dequantized to float32 when it is. Do not write into it. Call `release` when done with it.

        Raises:
            RequestError: no tensor of that name; the message names the nearest ones.
            CheckpointError: it cannot be read.
        """
        import torch

        logical = self._sound(name)
        self.check_unchanged(name)
        if len(logical.shape) > 2 and logical.dequantize is not None and not logical.undivided:
            experts = []
            for expert in range(logical.shape[0]):
                experts.append(self.read_expert(name, expert))
                self.release(name, expert)
            return torch.stack(experts)
        stored = {part: self._map(name, part) for part in logical.components}
        if logical.dequantize is not None:
            return logical.dequantize(stored)
        return stored[name].contiguous()

    def read_expert(self, name: str, expert: int) -> torch.Tensor:
        """One matrix of a stack of shape (experts, rows, columns), as `read` gives it; no other is read."""
        logical = self._sound(name)
        self.check_unchanged(name)
        own = {part: self._map(name, part, expert, logical.shape[0]) for part in logical.components}
        return logical.dequantize(own) if logical.dequantize is not None else own[name].contiguous()

    def read_matrix(self, record: TensorRecord, expert: int = 0) -> torch.Tensor:
        """The matrix of a record, of shape (record.rows, record.columns): of a stack, that of one expert."""
        if record.experts:
            return self.read_expert(record.name, expert)
        return self.read(record.name).reshape(record.rows, record.columns)

    def _sound(self, name: str) -> Logical:
        logical = self._logical.get(name)
        if logical is None:
            raise RequestError(self._missing(name, self._logical))
        if logical.fault is not None:
            raise CheckpointError(f"Tensor {name} of {self.path} cannot be read: {logical.fault}.")
        return logical

    def read_stored(self, name: str) -> torch.Tensor:
        """One tensor as its file holds it.

        Packed, when it is quantized; contiguous; mapped where it can be.
        """
        if name not in self.stored:
            raise RequestError(self._missing(name, self.stored))
        return self._map(name, name).contiguous()

    def release(self, name: str, expert: int | None = None) -> None:
        """Give back the mapped pages of a tensor, or of one expert, that was read.

        It stays valid, and is read from disk when touched again.
        """
        with self._lock:
            parts = self._mapped.pop((name, expert), {})
        for tensor in parts.values():
            mapped.release(tensor)

    def _map(self, name: str, part: str, expert: int | None = None, count: int = 0) -> torch.Tensor:
        """A stored part of tensor `name`; of a stack of `count` experts, what belongs to one of them."""
        with self._lock:
            tensor = self._files[self.stored[part].file].read(part)
            if expert is not None and tensor.dim() in (1, 3, 4) and tensor.shape[0] == count:
                tensor = tensor[expert]
            self._mapped[name, expert][part] = tensor
        mapped.prefetch(tensor)
        return tensor

    def _missing(self, name: str, among: Iterable[str]) -> str:
        names = list(among)
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
        hint = f"the nearest names are {', '.join(near)}" if near else f"it has {len(names)} others and none is near"
        shards = ", ".join(self._files)
        return f"There is no tensor {name} in {self.path} (looked in {shards}): {hint}."

    @property
    def _config_path(self) -> Path:
        return self.folder / ("adapter_config.json" if self.format == "adapter" else "config.json")

    def _read_config(self) -> dict[str, Any]:
        config = getattr(next(iter(self._files.values())), "config", None)  # a GGUF file brings its own
        if config is not None or not self._config_path.exists():
            return config or {}
        return read_object(self._config_path)


def _open_file(path: Path) -> WeightFile:
    refuse_pointer(path)
    if path.suffix == ".safetensors":
        return SafetensorsFile(path)
    if path.suffix == ".gguf":
        from glmspectra.checkpoint.formats.gguf_file import GgufFile

        return GgufFile(path)
    from glmspectra.checkpoint.formats.torch_file import TorchFile

    return TorchFile(path)


def _merge(located: Located, files: Mapping[str, WeightFile]) -> dict[str, StoredTensor]:
    """Bring the shards' tensors together, and hold them against the index."""
    stored: dict[str, StoredTensor] = {}
    for file in files.values():
        for name, entry in file.entries.items():
            if name in stored:
                raise CheckpointError(
                    f"Tensor {name} is in {stored[name].file} and in {entry.file} of {located.folder}: "
                    "which one counts cannot be known; leave only the files of one version in the folder."
                )
            stored[name] = entry
    for name, promised in located.promised.items():
        if name not in stored or stored[name].file != promised:
            where = f"it is in {stored[name].file}" if name in stored else "it is in no shard"
            raise CheckpointError(
                f"{located.index} says that tensor {name} is in {promised}, "
                f"but {where}: fetch index and shards of one version."
            )
    if not stored:
        raise CheckpointError(f"{located.folder} holds files of weights without any tensor.")
    return stored


def _records(logical: Mapping[str, Logical], config: Mapping[str, Any]) -> dict[str, TensorRecord]:
    parsed = {name: parse_name(name) for name in logical}
    short = _unique_names(parsed)
    heads = heads_of(config)
    records = []
    for name, tensor in logical.items():
        own = parsed[name]
        unfit = own.parameter == "bias" or name.endswith("_bias") or bool(TABLES.search(name))
        unfit = unfit or (is_companion(name) and not tensor.quantization)
        geometry = None if unfit else geometry_of(name, tensor.shape)
        fused = own.fused if geometry is not None else None
        if geometry is not None and geometry.experts and own.fused is None:
            fused = "gate_up" if EXPERTS_GATE_UP.search(name) and outputs_first(config, geometry.columns) else None
        parts = fused_parts(fused, geometry.rows, geometry.columns, heads) if fused and geometry else ()
        records.append(
            TensorRecord(
                name=name,
                shape=tensor.shape,
                dtype=tensor.dtype,
                nbytes=tensor.nbytes,
                file=tensor.file,
                quantization=tensor.quantization,
                layer=own.layer,
                matrix=short[name],
                depth_order=own.order,
                is_layer_matrix=own.zone == IN_LAYERS and geometry is not None,
                is_recognized=own.recognized,
                floating=tensor.floating,
                rows=geometry.rows if geometry else 0,
                columns=geometry.columns if geometry else 0,
                experts=geometry.experts if geometry else 0,
                fault=tensor.fault,
                fused_parts=parts,
                head_parts=head_parts(fused, geometry.rows, parts, heads) if fused and geometry else (),
            )
        )
    records.sort(key=lambda record: record.depth_order)
    return {record.name: record for record in records}


def _unique_names(parsed: Mapping[str, ParsedName]) -> dict[str, str]:
    """The shortest name for each tensor that no other tensor of its layer has.

    One matrix type keeps one name through all layers: when `wo` is taken twice in any layer (T5's encoder
    and decoder), every `wo` takes its longer name.
    """
    chosen = dict.fromkeys(parsed, 0)
    while True:
        taken: dict[tuple[int | None, str], list[str]] = defaultdict(list)
        for name, depth in chosen.items():
            taken[parsed[name].layer, parsed[name].names[depth]].append(name)
        ambiguous = {short for (_, short), names in taken.items() if len(names) > 1}
        longer = [
            name
            for name, depth in chosen.items()
            if parsed[name].names[depth] in ambiguous and depth + 1 < len(parsed[name].names)
        ]
        if not longer:
            return {name: parsed[name].names[depth] for name, depth in chosen.items()}
        for name in longer:
            chosen[name] += 1


def _name_of(path: Path) -> str:
    path = path.resolve()
    is_file, path = path.is_file(), Path(readable(path))
    if is_file:
        return path.parent.name if path.name.endswith(".index.json") else path.stem
    cache = next((part for part in path.parts if part.startswith("models--")), None)
    if cache and path.parent.name == "snapshots":  # the hub's cache names its folders by commit
        return cache.rpartition("--")[2]
    return path.name
