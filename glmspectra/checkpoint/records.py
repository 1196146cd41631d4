"""What is known of a tensor before it is read."""

from dataclasses import dataclass

WHOLE = "whole"


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
    """One logical tensor of a checkpoint; a quantised weight and its scales are one, under the weight's name.

    Attributes:
        name: the checkpoint's own name.
        shape: of what `Checkpoint.read` returns; (out_features, in_features) for a weight.
        dtype: as stored, by torch's name; `int8` or `uint8` for a quantised weight.
        nbytes: stored bytes, scales included.
        file: name of the file that holds it.
        quantization: None, or `int4`, `int8`, `nf4`, `fp4`, `llm_int8`, `fp8`, `gguf:Q4_1` ...
        layer: counted from 0; None outside the layers.
        matrix: short name, unique within a layer: `query_key_value`, `q_proj`, `mlp.experts.3.gate_proj`
        depth_order: sorts tensors as data flows through the model.
        is_layer_matrix: a weight of two dimensions inside a layer.
        is_recognised: whether the table of names knows where the tensor stands in the model.
        floating: whether `read` returns floating point numbers (integers that no scale belongs to cannot be
            measured).
        fused_parts: q, k, v or gate, up, where rows of several matrices are stored as one.
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
    depth_order: tuple
    is_layer_matrix: bool
    is_recognised: bool
    floating: bool
    fused_parts: tuple[Part, ...] = ()
    head_parts: tuple[Part, ...] = ()

    @property
    def is_matrix(self) -> bool:
        """Whether singular values can be taken of it: two dimensions, neither empty, floating point."""
        return len(self.shape) == 2 and min(self.shape) > 0 and self.floating

    def parts(self, split: bool | str = False) -> list[Part]:
        """Row ranges to measure.

        `whole` comes first, always. With `split=True` the fused parts follow (q, k, v; gate, up), with
        `split="heads"` the attention heads after them. A matrix that is not fused has `whole` alone.
        """
        rows = self.shape[0] if self.shape else 1
        found = [Part(WHOLE, 0, rows)]
        if split:
            found += self.fused_parts
        if split == "heads":
            found += self.head_parts
        return found
