"""What is wrong with a folder is said in one sentence that names the place and the way out."""

import json
import os
import pickle
import random
import struct
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from glmspectra.checkpoint import open_checkpoint
from glmspectra.errors import CheckpointError, RequestError
from tests.checkpoint.made_checkpoints import CONFIG, chatglm2_tensors, write


def refusal(path, error=CheckpointError):
    """The message with which a path is refused: one line, one sentence."""
    with pytest.raises(error) as caught, open_checkpoint(path):
        pass
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


def raw_safetensors(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def test_nothing_there(tmp_path):
    assert f"no model at {tmp_path / 'absent'}" in refusal(tmp_path / "absent", RequestError)


def test_empty_folder(tmp_path):
    assert refusal(tmp_path) == f"{tmp_path} is empty: give a folder that holds safetensors, .bin or GGUF files."


def test_folder_without_weights_says_what_it_has(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    torch.save({}, tmp_path / "training_args.bin")
    assert "holds only config.json, training_args.bin:" in refusal(tmp_path)


def test_file_of_another_format(tmp_path):
    (tmp_path / "weights.txt").write_text("none")
    assert ".safetensors, .bin" in refusal(tmp_path / "weights.txt", RequestError)


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_index_naming_a_missing_shard(tmp_path, form):
    folder = write(tmp_path, chatglm2_tensors(), form, shards=3)
    next(folder.glob("*00002-of*")).unlink()
    message = refusal(folder)
    assert "00002-of-00003" in message
    assert "index.json names" in message


def test_numbered_shard_missing_without_an_index(tmp_path):
    folder = write(tmp_path, chatglm2_tensors(), "safetensors", shards=3)
    (folder / "model.safetensors.index.json").unlink()
    (folder / "model-00002-of-00003.safetensors").unlink()
    assert "is one of 3 shards and model-00002-of-00003.safetensors is not in" in refusal(folder)


@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.3, 0.97])
def test_truncated_shard(tmp_path, form, kept):
    folder = write(tmp_path, chatglm2_tensors(), form, shards=2)
    shard = next(folder.glob("*00002-of*"))
    os.truncate(shard, int(shard.stat().st_size * kept))
    message = refusal(folder)
    assert shard.name in message
    assert ("truncated" in message) if kept > 0.001 else ("truncated" in message or "is not a" in message)


def test_safetensors_with_bytes_too_many(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(2)}, path)
    path.write_bytes(path.read_bytes() + b"xyz")
    assert "has 3 bytes after its last tensor" in refusal(path)


class RunsCode:
    def __reduce__(self):
        return os.system, ("touch " + os.environ["GLMSPECTRA_TEST_MARK"],)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickle_with_code_is_refused_and_nothing_runs(tmp_path, monkeypatch, zipped):
    mark = tmp_path / "code_ran"
    monkeypatch.setenv("GLMSPECTRA_TEST_MARK", str(mark))
    path = tmp_path / "pytorch_model.bin"
    torch.save({"w": torch.zeros(2), "x": RunsCode()}, path, _use_new_zipfile_serialization=zipped)
    message = refusal(tmp_path)
    assert "was refused and nothing of it was run" in message
    assert "system" in message
    assert not mark.exists()
    torch.load(path, weights_only=False)  # the control: unpickled freely, it does run
    assert mark.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_cut_anywhere_is_one_sentence(tmp_path, zipped):
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.randn(30, 10), "b": torch.randn(5)}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for length in [*range(0, 400, 7), len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:length])
        assert str(path) in refusal(path)


def test_a_header_damaged_anywhere_is_one_sentence_or_sound(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(3, 4), "b": torch.zeros(2).half()}, path)
    whole = path.read_bytes()
    length = 8 + int.from_bytes(whole[:8], "little")
    rng = random.Random(0)
    messages = []
    for _ in range(300):
        content = bytearray(whole)
        content[rng.randrange(length)] = rng.choice(b'0129"{}[],:-eEnN \xff')
        path.write_bytes(content)
        try:
            with open_checkpoint(path) as checkpoint:
                for name in checkpoint.tensors:
                    checkpoint.read(name)
        except CheckpointError as error:
            messages.append(str(error))
    assert len(messages) > 150
    assert all(str(path) in message for message in messages)


def test_plain_pickle_and_other_bytes_are_refused(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(pickle.dumps({"a": 1}, protocol=4))
    assert "pytorch_model.bin" in refusal(path)
    path.write_bytes(b"<html>not found</html>")
    assert "is not a file of torch.save" in refusal(path)


def test_bin_without_tensors(tmp_path):
    torch.save({"step": 3}, tmp_path / "pytorch_model.bin")
    assert "holds no tensors: its entries are step" in refusal(tmp_path)
    torch.save(torch.zeros(3), tmp_path / "pytorch_model.bin")
    assert "holds a Tensor, not a dictionary" in refusal(tmp_path)


def test_wrong_dtype(tmp_path):
    entry = {"dtype": "F17", "shape": [2], "data_offsets": [0, 4]}
    assert "tensor a has dtype F17" in refusal(raw_safetensors(tmp_path / "x.safetensors", {"a": entry}, b"1234"))
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}
    message = refusal(raw_safetensors(tmp_path / "x.safetensors", {"a": entry}, b"1234"))
    assert "takes 8 bytes, but the header gives it 4" in message


@pytest.mark.parametrize(
    "entry", [7, {}, {"dtype": "F32"}, {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 4]}, {"dtype": 3}]
)
def test_malformed_header_entry(tmp_path, entry):
    message = refusal(raw_safetensors(tmp_path / "x.safetensors", {"a": entry}, b"1234"))
    assert "tensor a" in message


@pytest.mark.parametrize("header", [b"nonsense", b"[1]", b"\xff\xfe"])
def test_header_that_is_no_json_object(tmp_path, header):
    assert "is not a safetensors file" in refusal(raw_safetensors(tmp_path / "x.safetensors", header))


def test_tensor_listed_twice_in_a_header(tmp_path):
    entry = '"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}'
    path = raw_safetensors(tmp_path / "x.safetensors", ("{" + entry + "," + entry + "}").encode(), b"1")
    assert "lists the tensor a twice" in refusal(path)


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_tensor_in_two_shards(tmp_path, form):
    tensors = chatglm2_tensors()
    folder = write(tmp_path, tensors, form, shards=2)
    shards = sorted(folder.glob("*-of-*"))
    name = next(iter(tensors))  # in the first shard
    save = save_file if form == "safetensors" else torch.save
    save(dict(list(tensors.items())[1::2]) | {name: tensors[name]}, shards[1])
    message = refusal(folder)
    assert f"Tensor {name} is in {shards[0].name} and in {shards[1].name}" in message


def test_tensor_listed_twice_in_an_index(tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "x.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "x.safetensors", "a": "x.safetensors"}}')
    assert "the key 'a' stands twice in one object" in refusal(tmp_path)


def test_index_and_shards_of_different_versions(tmp_path):
    folder = write(tmp_path, chatglm2_tensors(), "safetensors", shards=2)
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["transformer.extra.weight"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(content))
    assert "transformer.extra.weight is in model-00001-of-00002.safetensors, but it is in no shard" in refusal(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {}}'])
def test_malformed_index(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    assert "model.safetensors.index.json" in refusal(tmp_path)


def test_index_does_not_lead_out_of_its_folder(tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "x.safetensors")
    inner = tmp_path / "model"
    inner.mkdir()
    (inner / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../x.safetensors"}}')
    assert "lies outside its folder" in refusal(inner)


def test_broken_config(tmp_path):
    write(tmp_path, chatglm2_tensors(), "safetensors")
    (tmp_path / "config.json").write_text("{,}")
    assert "config.json is not JSON" in refusal(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    assert "config.json holds a list where a JSON object was expected" in refusal(tmp_path)


def test_file_that_may_not_be_read(tmp_path, monkeypatch):
    folder = write(tmp_path, chatglm2_tensors(), "safetensors")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", str(folder / "model.safetensors"))

    monkeypatch.setattr(type(folder), "open", refuse)  # the tests may run as root, who may read anything
    assert refusal(folder) == f"{folder / 'model.safetensors'} cannot be read: Permission denied."


def test_adapter_folder_without_its_weights(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "adapter_model.safetensors, adapter_model.bin" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_pointer_of_git_lfs_is_called_by_its_name(tmp_path, name):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1949337704\n"
    (tmp_path / name).write_text(pointer)
    assert "git lfs pull" in refusal(tmp_path)


# Files that promise more than they hold, or ask for more memory than they have bytes: refused before it is taken.


def zipped_pickle(path, content):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3")
    return path


def test_a_pickle_of_millions_of_marks_is_not_obeyed(tmp_path):
    bomb = b"\x80\x02" + b"(" * 2_000_000
    assert "marks nested in its pickle beyond the bound of 1,000" in refusal(zipped_pickle(tmp_path / "a.bin", bomb))
    (tmp_path / "b.bin").write_bytes(bomb)
    assert "beyond the bound of 1,000" in refusal(tmp_path / "b.bin")


def test_a_pickle_that_is_large_only_unpacked_is_not_unpacked(tmp_path):
    path = zipped_pickle(tmp_path / "a.bin", b"\x80\x02" + b"]0" * 20_000_000)
    assert path.stat().st_size < 200_000
    assert "a pickle of 40,000,002 bytes beyond the bound of 16,777,216" in refusal(path)


@pytest.mark.parametrize("shape", [[2**40, 2**40], [2**63, 2**63, 0], [-1, 4], [True, 4], [4.0]])
def test_shapes_that_cannot_be(tmp_path, shape):
    header = {"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}
    path = raw_safetensors(tmp_path / "x.safetensors", header)
    if 0 in shape:
        return  # no number at all, whatever the other sides: nothing is read of it
    assert "tensor a" in refusal(path)


def test_a_deeply_nested_header(tmp_path):
    path = raw_safetensors(tmp_path / "x.safetensors", b'{"a":' * 200_000 + b"1" + b"}" * 200_000)
    assert "is not a safetensors file" in refusal(path)


@pytest.mark.parametrize(
    ("tail", "said"),
    [
        (struct.pack("<QQ", 2**50, 0), "promises 1,125,899,906,842,624 tensors"),
        (struct.pack("<QQ", 0, 2**40), "facts in"),
        (struct.pack("<QQQ1sIIQ", 0, 1, 1, b"k", 9, 4, 2**60), "promises 4,611,686,018,427,387,904 bytes"),
        (struct.pack("<QQQ1sIIQ", 0, 1, 1, b"k", 9, 8, 2**60), "its header promises"),
        (struct.pack("<QQQ1sIIQ", 0, 1, 1, b"k", 9, 9, 1), "array of arrays"),
        (struct.pack("<QQQ", 0, 1, 2**62), "promises 4,611,686,018,427,387,904 bytes"),
    ],
)
def test_counts_of_a_gguf_header_that_its_size_cannot_hold(tmp_path, tail, said):
    pytest.importorskip("gguf")
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + struct.pack("<I", 3) + tail + bytes(40))
    assert said in refusal(tmp_path / "m.gguf")


@pytest.mark.parametrize("key", ["num_layers", "num_attention_heads", "hidden_size", "kv_channels", "vocab_size"])
@pytest.mark.parametrize("value", [10**9, 10**30, -1, 0, True, "28", 2.5, None, [], {}])
def test_a_configuration_of_absurd_sizes_opens_in_no_time(tmp_path, key, value):
    write(tmp_path, chatglm2_tensors(), "safetensors", config=CONFIG | {key: value, "text_config": value})
    with open_checkpoint(tmp_path) as checkpoint:
        assert len(checkpoint.tensors) == len(chatglm2_tensors())
        assert all(len(record.parts("heads")) < 100 for record in checkpoint.tensors.values())
