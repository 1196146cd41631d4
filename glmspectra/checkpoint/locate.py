"""Which files of a folder hold the weights."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from glmspectra.errors import CheckpointError, RequestError
from glmspectra.json_files import read_model

INDEXES = (("model.safetensors.index.json", "safetensors"), ("pytorch_model.bin.index.json", "bin"))
ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
SINGLE = (("model.safetensors", "safetensors"), ("pytorch_model.bin", "bin"))
SUFFIXES = {".safetensors": "safetensors", ".bin": "bin", ".pt": "bin", ".pth": "bin", ".gguf": "gguf"}
SHARD = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.\w+)$")
# `.bin` files that trainers leave beside the weights.
NOT_WEIGHTS = re.compile(r"^(training_args|optimizer|scheduler|scaler|rng_state.*|random_states.*)\.(bin|pt|pth)$")


LFS_POINTER = b"version https://git-lfs"  # what a clone without Git LFS leaves in place of a large file


@dataclass(frozen=True)
class Located:
    """Files of weights in reading order.

    `promised` maps a tensor to the file in which the index says it is.
    """

    folder: Path
    format: str
    files: tuple[Path, ...]
    index: Path | None = None
    promised: dict[str, str] = field(default_factory=dict)

    def beside(self) -> list[str]:
        """Names of other files of weights in the folder, which are not read: another format or copy of the model."""
        read = {path.name for path in self.files}
        there = (path.name for path in self.folder.iterdir() if path.suffix in SUFFIXES and path.is_file())
        return sorted(name for name in there if name not in read and not NOT_WEIGHTS.match(name))


def locate(path: Path) -> Located:
    """Find the weights at a path: a folder, an index file, or one file of weights.

    Of several formats in one folder the first is taken of: an adapter (when adapter_config.json is there),
    one model.safetensors, sharded safetensors, one pytorch_model.bin, sharded .bin, any other safetensors,
    .bin, GGUF; of these, a numbered set of shards before files without a number.

    Raises RequestError when there is nothing at the path, CheckpointError when what is there holds no weights
    or misses a shard.
    """
    if not path.exists():
        raise RequestError(
            f"There is no model at {path}: give a folder of safetensors, .bin or GGUF files, or one file."
        )
    if path.is_file():
        if path.name.endswith(".index.json"):
            return _from_index(path, "bin" if ".bin." in path.name else "safetensors")
        if path.suffix not in SUFFIXES:
            raise RequestError(f"{path} has none of the endings of a file of weights: {', '.join(SUFFIXES)}.")
        return Located(path.parent, SUFFIXES[path.suffix], (path,))
    if (path / "adapter_config.json").is_file():
        for name in ADAPTERS:
            if (path / name).is_file():
                return Located(path, "adapter", (path / name,))
        raise CheckpointError(
            f"{path} has an adapter_config.json and none of {', '.join(ADAPTERS)}: fetch or save it again."
        )
    for (index, format_), (single, _) in zip(INDEXES, SINGLE, strict=True):  # in the order of transformers
        if (path / single).is_file() and not _is_shard(path / index, single):
            return Located(path, format_, (path / single,))
        if (path / index).is_file():
            return _from_index(path / index, format_)
    for suffix, format_ in SUFFIXES.items():
        files = sorted(p for p in path.glob(f"*{suffix}") if p.is_file() and not NOT_WEIGHTS.match(p.name))
        if files:
            files = _one_model(path, files)
            _check_numbered(path, files)
            if format_ == "gguf" and len(files) > 1 and not all(SHARD.match(p.name) for p in files):
                names = ", ".join(p.name for p in files)
                raise RequestError(f"{path} holds several GGUF models ({names}): give one of the files.")
            return Located(path, format_, tuple(files))
    found = sorted(p.name for p in path.iterdir())
    what = f"holds only {', '.join(found[:8])}{' ...' if len(found) > 8 else ''}" if found else "is empty"
    raise CheckpointError(f"{path} {what}: give a folder that holds safetensors, .bin or GGUF files.")


def refuse_pointer(path: Path) -> None:
    """Raise CheckpointError where Git LFS left its pointer in place of the weights."""
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise CheckpointError(
                f"{path} is a pointer of Git LFS, not the weights: fetch them with `git lfs pull` in that folder."
            )


def _is_shard(index: Path, name: str) -> bool:
    return index.is_file() and name in read_index(index).values()


def _from_index(index: Path, format_: str) -> Located:
    promised = read_index(index)
    names = sorted(set(promised.values()))
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{index} names {missing[0]}{f' and {len(missing) - 1} more' if len(missing) > 1 else ''}, "
            f"which {'are' if len(missing) > 1 else 'is'} not in {index.parent}: fetch what is missing."
        )
    return Located(index.parent, format_, tuple(index.parent / name for name in names), index, promised)


class _Index(BaseModel):
    """An index of shards; what else it holds (sizes, a format) says nothing of where a tensor is."""

    model_config = ConfigDict(extra="ignore")
    weight_map: dict[str, str] = Field(min_length=1)


def read_index(index: Path) -> dict[str, str]:
    """The `weight_map` of an index: tensor name -> file name.

    Raises:
        CheckpointError: It is malformed, names a tensor twice, or a file outside its folder.
    """
    promised = read_model(index, _Index).weight_map
    outside = [file for file in promised.values() if Path(file).name != file]
    if outside:
        raise CheckpointError(f"{index} names the file {outside[0]}, which lies outside its folder: it was refused.")
    return promised


def _one_model(folder: Path, files: list[Path]) -> list[Path]:
    """Without an index: the shards of one numbered set where there is one, else all files.

    What lies beside a whole set is another copy of the model (`consolidated.safetensors`) or another thing.

    Raises:
        CheckpointError: There are several sets.
    """
    sets: dict[tuple[str, str], list[Path]] = {}
    for path in files:
        if numbered := SHARD.match(path.name):
            sets.setdefault((numbered["stem"], numbered["count"]), []).append(path)
    if len(sets) > 1:
        names = " and ".join(shards[0].name for shards in sets.values())
        raise CheckpointError(f"{folder} holds several sets of shards ({names}): leave one, or give its index.")
    return next(iter(sets.values()), files)


def _check_numbered(folder: Path, files: list[Path]) -> None:
    """Without an index, the shards' own numbers tell whether all are there."""
    for path in files:
        numbered = SHARD.match(path.name)
        if not numbered:
            continue
        count = int(numbered["count"])
        for number in range(1, count + 1):
            name = f"{numbered['stem']}-{number:05d}-of-{count:05d}{numbered['suffix']}"
            if not (folder / name).is_file():
                raise CheckpointError(f"{path.name} is one of {count} shards and {name} is not in {folder}: fetch it.")
