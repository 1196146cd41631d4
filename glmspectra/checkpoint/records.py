"""What is known of a tensor before it is read."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

WHOLE = "whole"
Split = Literal["no", "parts", "heads"]  # what is measured of a fused matrix beside the whole
SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True)
class FileRecord:
    """One file of weights.

    `size` in bytes; `fingerprint` as in fingerprint.py; `modified` is the file system's time of last change
    in nanoseconds, which a copy does not keep and the fingerprint therefore leaves out.
    """

    name: str
    size: int
    fingerprint: str
    modified: int


@dataclass(frozen=True)
class Part:
    """Rows `row_start` to `row_stop` (not included) of a matrix: `q`, `gate`, `k.head_0` ..."""

    name: str
    row_start: int
    row_stop: int

    @property
    def rows(self) -> slice:
        return slice(self.row_start, self.row_stop)


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as a file holds it: shape, dtype by torch's name (`float16`), bytes, and the file's name."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    file: str


@dataclass(frozen=True)
class TensorRecord:
    """One logical tensor of a checkpoint; a quantized weight and its scales are one, under the weight's name.

    Attributes:
        name: the checkpoint's own name.
        shape: of what `Checkpoint.read` returns; (out_features, in_features) for a weight.
        rows, columns: of its matrix, or of each of its matrices: (out, in x kernel) of a convolution; 0 of no matrix.
        experts: how many matrices it holds, where it is a stack of experts; else 0.
        dtype: as stored, by torch's name; `int8` or `uint8` for a quantized weight.
        nbytes: stored bytes, scales included.
        file: name of the file that holds it.
        quantization: None, or the quantized format: `int4`, `nf4`, `fp8`, `gptq:4bit`, `gguf:Q4_1` ...
        fault: why it cannot be read; None when it can.
        layer: counted from 0; None outside the layers.
        matrix: short name, unique within a layer: `query_key_value`, `q_proj`, `mlp.experts.3.gate_proj`
        depth_order: sorts tensors as data flows through the model.
        is_layer_matrix: a weight inside a layer that is a matrix or a stack of them.
        is_recognized: whether the table of names knows where the tensor stands in the model.
        floating: whether `read` returns floating point numbers (integers that no scale belongs to cannot be
            measured).
        fused_parts: q, k, v or gate, up, where rows of several matrices are stored as one (of each expert).
        head_parts: attention heads, where the configuration tells how many.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    file: str
    quantization: str | None
    layer: int | None
    matrix: str
    depth_order: tuple[Any, ...]
    is_layer_matrix: bool
    is_recognized: bool
    floating: bool
    rows: int = 0
    columns: int = 0
    experts: int = 0
    fault: str | None = None
    fused_parts: tuple[Part, ...] = ()
    head_parts: tuple[Part, ...] = ()

    @property
    def is_matrix(self) -> bool:
        """Whether singular values can be taken of it, once read: neither side empty, floating point."""
        return min(self.rows, self.columns) > 0 and (self.floating or self.fault is not None)

    @property
    def is_weight(self) -> bool:
        """Whether it has the name of a weight, so that a command that does not measure it must say so."""
        small = self.dtype in ("int8", "uint8", "int16", "uint16", "int32", "uint32")  # what packed weights are held in
        return self.name.rpartition(".")[2] == "weight" or len(self.shape) > 2 or small

    @property
    def matrix_parts(self) -> list[Part]:
        """The matrices: `whole`, or each expert, as ranges of the rows of all of them one after the other."""
        if not self.experts:
            return [Part(WHOLE, 0, self.rows if self.rows else (self.shape[0] if self.shape else 1))]
        return [Part(f"expert_{n}", n * self.rows, (n + 1) * self.rows) for n in range(self.experts)]

    def inner_parts(self, split: Split = "no") -> tuple[Part, ...]:
        """Row ranges inside a matrix: its fused parts with split 'parts', its heads too with 'heads'."""
        return (self.fused_parts if split != "no" else ()) + (self.head_parts if split == "heads" else ())

    def parts(self, split: Split = "no") -> list[Part]:
        """Row ranges to measure.

        `whole` comes first (of a stack: `expert_0`, `expert_1` ... in its place). With split 'parts' the fused ones
        follow (q, k, v; gate, up; `expert_0.gate`), with 'heads' the attention heads after them. A matrix that
        is not fused has `whole` alone.
        """
        found = []
        for matrix in self.matrix_parts:
            prefix, start = ("" if matrix.name == WHOLE else f"{matrix.name}."), matrix.row_start
            found.append(matrix)
            found += [
                Part(prefix + inner.name, start + inner.row_start, start + inner.row_stop)
                for inner in self.inner_parts(split)
            ]
        return found
