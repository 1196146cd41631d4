"""`glmspectra convert`: the same tensors in safetensors, complete at their name or not there."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open

from glmspectra.checkpoint import open_checkpoint
from glmspectra.checkpoint.formats.chatglm_int import quantize_rows
from glmspectra.checkpoint.writing import convert as conversion
from glmspectra.checkpoint.writing import folder as writing
from glmspectra.checkpoint.writing.convert import convert
from glmspectra.checkpoint.writing.shards import Planned, plan_shards
from glmspectra.errors import CheckpointError, RequestError
from tests.checkpoint.made_checkpoints import CONFIG, chatglm2_tensors, run_command, write

SHARD = 12_000  # bytes: five shards of the small model


@pytest.fixture
def source(tmp_path):
    """Two .bin shards with strided and odd tensors among them, a tokenizer, remote code, a trainer's leavings."""
    tensors = chatglm2_tensors() | {
        "strided": torch.randn(6, 4).t(),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "odd": torch.arange(7, dtype=torch.uint8),
        "fp8": torch.randn(3, 3).to(torch.float8_e4m3fn),
        "not_finite": torch.tensor([float("nan"), float("inf"), -0.0]),
    }
    folder = write(tmp_path / "source", tensors, "bin", shards=2)
    (folder / "tokenizer.model").write_bytes(b"pieces")
    (folder / "tokenizer_config.json").write_text("{}")
    torch.save({}, folder / "training_args.bin")
    return folder, tensors


def same(first, second):
    return (
        first.dtype == second.dtype
        and first.shape == second.shape
        and first.tolist().__repr__() == second.tolist().__repr__()
    )


def test_every_tensor_is_rewritten_bit_for_bit(source, tmp_path):
    folder, tensors = source
    out = tmp_path / "new" / "out"
    with open_checkpoint(folder) as checkpoint:
        done = convert(checkpoint, out, shard_bytes=SHARD)
    assert len(done.shards) > 3
    assert done.copied == ["config.json", "tokenizer.model", "tokenizer_config.json"]
    assert sorted(p.name for p in out.iterdir()) == sorted([*done.shards, *done.copied, "model.safetensors.index.json"])
    assert sorted(p.name for p in out.parent.iterdir()) == ["out"]
    found = {}
    for name in done.shards:
        with safe_open(out / name, "pt") as file:
            assert file.metadata() == {"format": "pt"}
            found |= {key: (file.get_tensor(key), name) for key in file.keys()}  # noqa: SIM118
    assert set(found) == set(tensors)
    assert all(same(found[name][0], tensor) for name, tensor in tensors.items())
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {name: shard for name, (_, shard) in found.items()}
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    with open_checkpoint(out) as checkpoint:
        assert checkpoint.config == CONFIG
        assert set(checkpoint.tensors) == set(tensors)


def test_one_shard_needs_no_index(source, tmp_path):
    with open_checkpoint(source[0]) as checkpoint:
        done = convert(checkpoint, tmp_path / "out")
    assert list(done.shards) == ["model.safetensors"]
    assert not (tmp_path / "out" / "model.safetensors.index.json").exists()


def test_tensors_lie_on_multiples_of_their_size(source, tmp_path):
    with open_checkpoint(source[0]) as checkpoint:
        convert(checkpoint, tmp_path / "out")
    raw = (tmp_path / "out" / "model.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    assert length % 8 == 0
    sizes = {"F32": 4, "F16": 2, "U8": 1, "F8_E4M3": 1}
    for name, entry in json.loads(raw[8 : 8 + length]).items():
        if name != "__metadata__":
            assert entry["data_offsets"][0] % sizes[entry["dtype"]] == 0


def test_shards_are_cut_in_order_and_under_the_limit():
    tensors = [Planned(f"t{i}", (size,), torch.uint8, size) for i, size in enumerate([5, 5, 1, 30, 2, 8, 0])]
    assert [[t.nbytes for t in shard] for shard in plan_shards(tensors, 10)] == [[5, 5], [1], [30], [2, 8, 0]]


def test_interrupted_it_goes_on_after_the_last_verified_shard(source, tmp_path, monkeypatch):
    folder, tensors = source
    out = tmp_path / "out"
    calls = []
    write_shard = writing.write_shard

    def interrupted(path, *arguments):
        calls.append(path.name)
        if len(calls) == 3:
            path.with_name(f".{path.name}.1.partial").write_bytes(b"half a shard")
            raise KeyboardInterrupt
        return write_shard(path, *arguments)

    monkeypatch.setattr(writing, "write_shard", interrupted)
    with open_checkpoint(folder) as checkpoint:
        with pytest.raises(KeyboardInterrupt):
            convert(checkpoint, out, shard_bytes=SHARD)
        assert not out.exists()
        done = convert(checkpoint, out, shard_bytes=SHARD)
    assert done.resumed == 2
    assert len(calls) == 3 + len(done.shards) - 2
    assert calls[2] == calls[3]  # the shard that was interrupted is written anew, those before it are not
    assert sorted(p.name for p in out.iterdir() if p.name.startswith(".")) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "source"]
    with open_checkpoint(out) as checkpoint:
        assert all(same(checkpoint.read_stored(name), tensor) for name, tensor in tensors.items())


def test_nothing_of_another_source_is_taken_up(source, tmp_path, monkeypatch):
    folder, tensors = source
    out = tmp_path / "out"
    monkeypatch.setattr(conversion, "_copy_others", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with open_checkpoint(folder) as checkpoint, pytest.raises(KeyboardInterrupt):
        convert(checkpoint, out, shard_bytes=SHARD)
    monkeypatch.undo()
    tensors["transformer.encoder.layers.0.self_attention.dense.weight"] += 1
    write(folder, tensors, "bin", shards=2)
    with open_checkpoint(folder) as checkpoint:
        assert convert(checkpoint, out, shard_bytes=SHARD).resumed == 0
    with open_checkpoint(out) as checkpoint:
        assert all(same(checkpoint.read_stored(name), tensor) for name, tensor in tensors.items())


def test_what_was_written_wrongly_is_noticed(source, tmp_path, monkeypatch):
    write_shard = writing.write_shard

    def flipping(path, *arguments):
        checksums = write_shard(path, *arguments)
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        return checksums

    monkeypatch.setattr(writing, "write_shard", flipping)
    with (
        open_checkpoint(source[0]) as checkpoint,
        pytest.raises(CheckpointError, match="is not what was to be written"),
    ):
        convert(checkpoint, tmp_path / "out", shard_bytes=SHARD)
    assert not (tmp_path / "out").exists()


def test_requests_that_cannot_be(source, tmp_path):
    folder, _ = source
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with open_checkpoint(folder) as checkpoint:
        for out, dtype, message in [
            (tmp_path / "full", None, "nothing is overwritten: name another folder"),
            (folder, None, "is the checkpoint itself"),
            (tmp_path / "out", "int8", "--dtype int8"),
        ]:
            with pytest.raises(RequestError, match=message):
                convert(checkpoint, out, dtype)
    assert (tmp_path / "full" / "file").exists()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_packed_weights_are_kept_or_dequantized(tmp_path, dtype):
    tensors = chatglm2_tensors(layers=1)
    name = "transformer.encoder.layers.0.self_attention.dense.weight"
    tensors[name], tensors[name + "_scale"] = quantize_rows(tensors[name], 4)
    folder = write(tmp_path / "source", tensors, "bin", config=CONFIG | {"quantization_bit": 4})
    with open_checkpoint(folder) as checkpoint:
        expected = checkpoint.read(name)
        convert(checkpoint, tmp_path / "kept")
        convert(checkpoint, tmp_path / "cast", dtype)
    with open_checkpoint(tmp_path / "kept") as kept:
        assert torch.equal(kept.read_stored(name), tensors[name])
        assert torch.equal(kept.read(name), expected)
    with open_checkpoint(tmp_path / "cast") as cast:
        assert "quantization_bit" not in cast.config
        assert cast.config["dtype"] == dtype
        assert name + "_scale" not in cast.tensors
        assert {record.dtype for record in cast.tensors.values()} == {dtype}
        assert torch.equal(cast.read(name), expected.to(getattr(torch, dtype)))


def test_the_command(source, tmp_path, capsys, monkeypatch):
    folder, tensors = source
    monkeypatch.chdir(tmp_path)
    assert run_command("convert", "--model", folder, "--shard-size", "0.00002", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["out"], result["form"]) == ("source-safetensors", "bin")
    assert sum(result["shards"].values()) == result["bytes"]
    with open_checkpoint(tmp_path / result["out"]) as checkpoint:
        assert set(checkpoint.tensors) == set(tensors)
    assert run_command("convert", "--model", folder) == 2  # it is there now


CHILD = """
import resource, signal, sys
from glmspectra.cli.main import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit, arguments = int(sys.argv[1]), sys.argv[2:]
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    main(arguments)
finally:
    print(open("/proc/self/status").read())
"""


@pytest.mark.slow
def test_a_disk_that_takes_no_more(source, tmp_path):
    """The system refuses to let a file grow (as on a full disk): one sentence, status 1, finished shards kept."""
    folder, _ = source
    command = [sys.executable, "-c", CHILD, "5500", "convert", "--model", str(folder), "--out", str(tmp_path / "out")]
    done = subprocess.run([*command, "--shard-size", "0.000005", "--quiet"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "cannot be written" in done.stderr
    assert "run the same command again" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
    kept = list((tmp_path / ".out.partial").glob("*.safetensors"))
    assert kept
    with open_checkpoint(folder) as checkpoint:
        assert convert(checkpoint, tmp_path / "out", shard_bytes=5000).resumed == len(kept)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from VmHWM")
def test_the_model_is_not_held(tmp_path):
    """320 MiB from one .bin file, with 32 MiB tensors: the peak stays a few tensors above that of a small model."""
    peaks = []
    for count in (1, 10):
        tensors = {f"model.layers.{i}.mlp.up_proj.weight": torch.full((4096, 4096), i).half() for i in range(count)}
        folder = write(tmp_path / f"source{count}", tensors, "bin")
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                CHILD,
                "0",
                "convert",
                "--model",
                str(folder),
                "--out",
                str(tmp_path / f"out{count}"),
                "--quiet",
            ],
            capture_output=True,
            text=True,
            check=True,
        )
        peaks.append(int(done.stdout.split("VmHWM:")[1].split()[0]) / 1024)
    assert peaks[1] - peaks[0] < 32, peaks
