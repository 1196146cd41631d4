"""Every form of a checkpoint gives the same tensors, in depth order, one at a time."""

import json
import os
import threading

import pytest
import torch
from safetensors.torch import save_file

from glmspectra.checkpoint import open_checkpoint, select
from glmspectra.checkpoint.formats import mapped
from glmspectra.errors import RequestError
from tests.checkpoint.made_checkpoints import CONFIG, FFN, GROUPS, HEADS, LAYERS, chatglm2_tensors, write


@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_form_gives_the_tensors_as_stored(tmp_path, form, shards, dtype):
    tensors = chatglm2_tensors(dtype)
    with open_checkpoint(write(tmp_path / "model", tensors, form, shards)) as checkpoint:
        assert (checkpoint.format, checkpoint.name, checkpoint.config) == (form, "model", CONFIG)
        assert set(checkpoint.tensors) == set(tensors)
        for name, record in checkpoint.tensors.items():
            found = checkpoint.read(name)
            assert found.dtype == dtype
            assert torch.equal(found, tensors[name])
            assert (record.shape, record.nbytes) == (tuple(found.shape), found.nbytes)
            assert record.dtype == str(dtype).removeprefix("torch.")
            checkpoint.release(name)
            assert torch.equal(found, tensors[name])  # still valid: its pages are read again


def test_depth_order_is_the_order_of_the_forward_pass(tmp_path):
    with open_checkpoint(write(tmp_path, chatglm2_tensors(), "safetensors")) as checkpoint:
        records = list(checkpoint.tensors.values())
    inside = [
        "input_layernorm",
        "query_key_value",
        "query_key_value.bias",
        "dense",
        "post_attention_layernorm",
        "dense_h_to_4h",
        "dense_4h_to_h",
    ]
    expected = [(None, "word_embeddings"), (None, "inv_freq")]
    expected += [(layer, matrix) for layer in range(LAYERS) for matrix in inside]
    expected += [(None, "final_layernorm"), (None, "output_layer")]
    assert [(record.layer, record.matrix) for record in records] == expected


def test_parts_of_fused_matrices_cover_their_rows(tmp_path):
    with open_checkpoint(write(tmp_path, chatglm2_tensors(), "safetensors")) as checkpoint:
        record = checkpoint.tensors["transformer.encoder.layers.1.self_attention.query_key_value.weight"]
        assert [part.name for part in record.parts("no")] == ["whole"]
        ranges = {part.name: (part.row_start, part.row_stop) for part in record.parts("parts")}
        assert ranges == {"whole": (0, 64), "q": (0, 32), "k": (32, 48), "v": (48, 64)}
        heads = record.parts("heads")
        assert [part.name for part in heads[4:]] == [
            *(f"q.head_{i}" for i in range(HEADS)),
            *(f"{word}.head_{i}" for word in "kv" for i in range(GROUPS)),
        ]
        rows = [row for part in heads[4:] for row in range(part.row_start, part.row_stop)]
        assert rows == list(range(64))
        gate_up = checkpoint.tensors["transformer.encoder.layers.1.mlp.dense_h_to_4h.weight"].parts("parts")
        assert [(part.name, part.rows) for part in gate_up[1:]] == [
            ("gate", slice(0, FFN)),
            ("up", slice(FFN, 2 * FFN)),
        ]
        dense = checkpoint.tensors["transformer.encoder.layers.1.self_attention.dense.weight"]
        assert [part.name for part in dense.parts("heads")] == ["whole"]


def test_parts_are_left_out_where_the_configuration_contradicts_the_shape(tmp_path):
    wrong = CONFIG | {"multi_query_group_num": 3}
    name = "transformer.encoder.layers.0.self_attention.query_key_value.weight"
    with open_checkpoint(write(tmp_path / "a", chatglm2_tensors(), "safetensors", config=wrong)) as checkpoint:
        assert [part.name for part in checkpoint.tensors[name].parts("heads")] == ["whole"]
    # Without any configuration q, k and v are told from the shape, heads are not.
    with open_checkpoint(write(tmp_path / "b", chatglm2_tensors(), "safetensors", config=None)) as checkpoint:
        assert [part.name for part in checkpoint.tensors[name].parts("heads")] == ["whole", "q", "k", "v"]


@pytest.mark.shared
def test_golden_checkpoint_is_the_same_in_both_forms(shared):
    folder = shared / "golden/chatglm2_tiny_a"
    with (
        open_checkpoint(folder) as safetensors,
        open_checkpoint(folder / "pytorch_model.bin.index.json") as pickled,
    ):
        assert (safetensors.format, pickled.format) == ("safetensors", "bin")
        assert safetensors.name == pickled.name == "chatglm2_tiny_a"
        assert len(safetensors.tensors) == 25
        assert list(safetensors.tensors) == list(pickled.tensors)
        for name in safetensors.tensors:
            assert torch.equal(safetensors.read(name), pickled.read(name))


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_tensors_of_every_shape_and_type(tmp_path, form):
    """0-d, empty, fp8, strided, of odd length, integer, boolean."""
    torch.manual_seed(1)
    tensors = {
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
        "fp8": torch.randn(5, 3).to(torch.float8_e4m3fn),
        "fp8b": torch.randn(5, 3).to(torch.float8_e5m2),
        "bf16": torch.randn(3, 5, dtype=torch.bfloat16),
        "odd": torch.arange(7, dtype=torch.uint8),
        "double": torch.randn(2, 2, dtype=torch.float64),
        "mask": torch.tensor([True, False]),
        "cube": torch.randn(2, 3, 4),
    }
    if form == "bin":  # safetensors stores nothing with strides
        tensors["strided"] = torch.randn(6, 4).t()
        tensors["every_second"] = torch.randn(9, 4)[::2]
    folder = write(tmp_path, tensors, form, config=None)
    with open_checkpoint(folder) as checkpoint:
        assert set(checkpoint.tensors) == set(tensors)
        for name, tensor in tensors.items():
            unscaled = tensor.dtype in (torch.float8_e4m3fn, torch.float8_e5m2)  # what they mean cannot be known
            found = checkpoint.read_stored(name) if unscaled else checkpoint.read(name)
            assert (checkpoint.tensors[name].fault is not None) == unscaled
            assert found.is_contiguous()
            assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
            assert found.tolist() == tensor.tolist()
            checkpoint.release(name)
            assert checkpoint.tensors[name].shape == tuple(tensor.shape)
        matrices = {record.name for record in select(checkpoint)}
        assert matrices == {"fp8", "fp8b", "bf16", "double"} | ({"strided", "every_second"} & set(tensors))


def test_old_torch_files_are_read_too(tmp_path):
    tensors = chatglm2_tensors(layers=1)
    torch.save(tensors, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    with open_checkpoint(tmp_path / "pytorch_model.bin") as checkpoint:
        for name, tensor in tensors.items():
            assert torch.equal(checkpoint.read(name), tensor)


@pytest.mark.parametrize("form", ["safetensors", "bin", "old bin", "strided bin"])
def test_release_never_changes_a_tensor(tmp_path, form):
    """Of several pages, mapped or not: dropping pages that no file stands behind would turn them to zeros."""
    torch.manual_seed(0)
    tensors = {f"t{i}": torch.randn(300, 1000) for i in range(3)}
    if form == "strided bin":
        tensors = {name: tensor.t() for name, tensor in tensors.items()}
    if form == "safetensors":
        save_file(tensors, tmp_path / "model.safetensors")
    else:
        torch.save(tensors, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=form != "old bin")
    with open_checkpoint(tmp_path) as checkpoint:
        for _ in range(2):
            for name, tensor in tensors.items():
                found = checkpoint.read(name)
                assert torch.equal(found, tensor)
                checkpoint.release(name)
                assert torch.equal(found, tensor)
                assert torch.equal(checkpoint.read(name), tensor)
    mapped.release(tensors["t0"])
    assert tensors["t0"].abs().min() >= 0
    assert float(tensors["t0"].std()) > 0.9


def test_weights_under_a_trainers_word_are_found(tmp_path):
    tensors = chatglm2_tensors(layers=1)
    torch.save({"epoch": 3, "state_dict": tensors}, tmp_path / "pytorch_model.bin")
    with open_checkpoint(tmp_path) as checkpoint:
        assert set(checkpoint.tensors) == set(tensors)


def test_numbered_shards_without_an_index(tmp_path):
    folder = write(tmp_path, chatglm2_tensors(), "safetensors", shards=3)
    (folder / "model.safetensors.index.json").unlink()
    with open_checkpoint(folder) as checkpoint:
        assert set(checkpoint.tensors) == set(chatglm2_tensors())


def test_fingerprint_follows_content_and_not_time_or_place(tmp_path):
    tensors = chatglm2_tensors()
    first, second = (write(tmp_path / word, tensors, "safetensors", shards=2) for word in "ab")
    os.utime(second / "model-00001-of-00002.safetensors", (1, 1))
    with open_checkpoint(first) as a, open_checkpoint(second) as b:
        assert len(a.fingerprint) == 16
        assert int(a.fingerprint, 16) >= 0
        assert a.fingerprint == b.fingerprint
        assert [file.size for file in a.files] == [file.size for file in b.files]
    tensors["transformer.encoder.layers.0.self_attention.dense.weight"][3, 4] += 1  # one number of thousands
    with open_checkpoint(write(second, tensors, "safetensors", shards=2)) as changed:
        assert changed.fingerprint != a.fingerprint
        differing = [x.name for x, y in zip(a.files, changed.files, strict=True) if x.fingerprint != y.fingerprint]
        assert len(differing) == 1


def test_fingerprint_of_a_large_file_notices_every_changed_matrix(tmp_path):
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:  # sparse: 80 MiB of zeros
        header = json.dumps({"a": {"dtype": "F16", "shape": [40 << 20], "data_offsets": [0, 80 << 20]}}).encode()
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + (80 << 20))
    with open_checkpoint(path) as checkpoint:
        before = checkpoint.fingerprint
    with path.open("r+b") as file:  # a matrix of one MiB, somewhere
        file.seek(33_333_333)
        file.write(b"\x01" * (1 << 20))
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.fingerprint != before


def test_threads_read_and_release_together(tmp_path):
    tensors = chatglm2_tensors()
    wrong = []
    with open_checkpoint(write(tmp_path, tensors, "bin", shards=2)) as checkpoint:

        def work():
            for _ in range(20):
                for name, tensor in tensors.items():
                    if not torch.equal(checkpoint.read(name), tensor):
                        wrong.append(name)
                    checkpoint.release(name)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_a_missing_tensor_names_the_nearest(tmp_path):
    folder = write(tmp_path, chatglm2_tensors(), "safetensors", shards=2)
    with open_checkpoint(folder) as checkpoint, pytest.raises(RequestError) as caught:
        checkpoint.read("transformer.encoder.layers.2.self_attention.dence.weight")
    message = str(caught.value)
    assert "transformer.encoder.layers.2.self_attention.dense.weight" in message
    assert "model-00001-of-00002.safetensors, model-00002-of-00002.safetensors" in message
    assert str(tmp_path) in message


def test_hub_cache_folders_are_named_by_their_model(tmp_path):
    folder = tmp_path / "models--THUDM--chatglm2-6b" / "snapshots" / "d2e2d91789248536a747d9ce60642a336444186c"
    with open_checkpoint(write(folder, chatglm2_tensors(layers=1), "safetensors")) as checkpoint:
        assert checkpoint.name == "chatglm2-6b"


def test_adapter_folders_open_as_they_are(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4}))
    prefix = "base_model.model.transformer.encoder.layers.0.self_attention.query_key_value.lora_"
    save_file(
        {prefix + "A.weight": torch.randn(4, 32), prefix + "B.weight": torch.randn(64, 4)},
        tmp_path / "adapter_model.safetensors",
    )
    with open_checkpoint(tmp_path) as checkpoint:
        assert (checkpoint.format, checkpoint.config["r"]) == ("adapter", 4)
        assert {record.layer for record in checkpoint.tensors.values()} == {0}
