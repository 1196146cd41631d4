"""A folder of training data cut short."""

from pathlib import Path


def keep_rows(data: Path, train: int, valid: int) -> None:
    """Leave the first rows of `train.jsonl` and `valid.jsonl` in a folder."""
    for name, count in (("train.jsonl", train), ("valid.jsonl", valid)):
        rows = (data / name).read_text(encoding="utf-8").splitlines(keepends=True)
        (data / name).write_text("".join(rows[:count]), encoding="utf-8")
