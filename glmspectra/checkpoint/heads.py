"""Row ranges of fused matrices and of attention heads, from the shape and the configuration."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from glmspectra.checkpoint.records import Part


@dataclass(frozen=True)
class Heads:
    """Attention geometry: query heads, key-value heads (groups), and rows a head."""

    query: int
    key_value: int
    size: int


def heads_of(config: Mapping[str, Any]) -> Heads | None:
    """Read the attention geometry from a `config.json` of ChatGLM2's or Hugging Face's words.

    None when it does not say.
    """
    inner = config.get("text_config")
    config = inner if isinstance(inner, Mapping) else config
    query = _first(config, "num_attention_heads", "n_head", "num_heads", "n_heads")
    hidden = _first(config, "hidden_size", "n_embd", "d_model", "dim")
    size = _first(config, "kv_channels", "head_dim", "d_kv")
    if query and not size and hidden and hidden % query == 0:
        size = hidden // query
    if not query or not size:
        return None
    # ChatGLM2 states its groups beside a switch; Falcon has such a switch and no number.
    grouped = config.get("multi_query_attention", True)
    key_value = _first(config, "multi_query_group_num") if grouped else query
    return Heads(query, key_value or _first(config, "num_key_value_heads", "n_kv_heads") or query, size)


def fused_parts(fused: str | None, rows: int, columns: int, heads: Heads | None) -> tuple[Part, ...]:
    """Row ranges of the matrices inside a fused one of shape (rows, columns).

    Empty when they cannot be known.
    """
    if fused == "gate_up" and rows % 2 == 0:
        return Part("gate", 0, rows // 2), Part("up", rows // 2, rows)
    if fused != "qkv":
        return ()
    if heads is not None:
        query, key_value = heads.query * heads.size, heads.key_value * heads.size
    else:  # without a configuration: the query is as wide as the input in every model of the table
        query, key_value = columns, (rows - columns) // 2
    if key_value <= 0 or query + 2 * key_value != rows:
        return ()
    return Part("q", 0, query), Part("k", query, query + key_value), Part("v", query + key_value, rows)


def head_parts(fused: str | None, rows: int, parts: tuple[Part, ...], heads: Heads | None) -> tuple[Part, ...]:
    """Row ranges of the attention heads of a q, k, v or fused matrix.

    `q.head_0`, `q.head_1`, ... `v.head_1`.
    """
    if heads is None:
        return ()
    if fused in ("q", "k", "v"):
        parts = (Part(fused, 0, rows),)
    elif fused != "qkv":
        return ()
    found = []
    for part in parts:
        count = heads.query if part.name == "q" else heads.key_value
        if part.row_stop - part.row_start != count * heads.size:
            return ()
        for head in range(count):
            start = part.row_start + head * heads.size
            found.append(Part(f"{part.name}.head_{head}", start, start + heads.size))
    return tuple(found)


def _first(config: Mapping[str, Any], *keys: str) -> int | None:
    for key in keys:
        if type(config.get(key)) is int and config[key] > 0:
            return int(config[key])
    return None
