"""The two tasks and how a row becomes tokens: medical answers (JSON Lines given by path) and Python function bodies
(from the standard library of the running interpreter, so that anyone has them)."""

import ast
import hashlib
import json
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Rows:
    """Padded token rows: input_ids, attention_mask, labels, each (N, length) int64; -100 on what is not learnt."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    def take(self, index: torch.Tensor, device: str) -> dict[str, torch.Tensor]:
        """Those rows on the device, cut to the longest of them; learnt: rows and positions of what is learnt, (2, N),
        after the shift by one."""
        mask = self.attention_mask[index]
        end = int(mask.sum(1).max())  # rows are padded on the right
        labels = self.labels[index, :end]
        found = {
            "input_ids": self.input_ids[index, :end],
            "attention_mask": mask[:, :end],
            "labels": labels,
            "learnt": torch.stack((labels[:, 1:] != -100).nonzero(as_tuple=True)),
        }
        return {name: value.to(device, non_blocking=True) for name, value in found.items()}

    def batches(self, size: int, device: str) -> Iterator[dict[str, torch.Tensor]]:
        """All rows, of like lengths together."""
        order = torch.argsort(self.attention_mask.sum(1), stable=True, descending=True)
        for start in range(0, len(self), size):
            yield self.take(order[start : start + size], device)


def medical_pairs(path: Path) -> list[tuple[str, str]]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [(row["context"], row["target"]) for row in rows]


def python_bodies(longest: int = 1200) -> list[tuple[str, str]]:
    """(signature and docstring, body) of documented functions in the standard library, in the order of file names."""
    root = Path(sysconfig.get_paths()["stdlib"])
    pairs = []
    for path in sorted(root.rglob("*.py")):
        if any(part in {"site-packages", "test", "tests", "idlelib", "lib2to3"} for part in path.parts):
            continue
        try:
            source = path.read_text(encoding="utf-8")
            tree = ast.parse(source)
        except (SyntaxError, UnicodeDecodeError):
            continue
        lines = source.splitlines()
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef) or not ast.get_docstring(node) or len(node.body) < 3:
                continue
            head = "\n".join(lines[node.lineno - 1 : node.body[0].end_lineno]) + "\n"
            body = "\n".join(lines[node.body[0].end_lineno : node.end_lineno]) + "\n"
            if 80 <= len(body) <= longest and len(head) <= longest:
                pairs.append((head, body))
    return pairs


def split(pairs: list[tuple[str, str]], held_out: int) -> tuple[list, list, list]:
    """train, development, test. By a hash of the prompt, so that equal prompts never stand on two sides."""
    keyed = sorted(set(pairs), key=lambda pair: hashlib.sha256(pair[0].encode()).hexdigest())
    return keyed[2 * held_out :], keyed[:held_out], keyed[held_out : 2 * held_out]


def encode(
    pairs: list[tuple[str, str]], tokens: Callable[[str], list[int]], prefix: list[int], eos: int, length: int
) -> Rows:
    """Prompt masked, eos learnt. A prompt longer than half the row is cut on the left, an answer on the right."""
    ids = torch.zeros(len(pairs), length, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, (prompt, answer) in enumerate(pairs):
        head = prefix + tokens(prompt)[-(length // 2 - len(prefix)) :]
        tail = ([*tokens(answer), eos])[: length - len(head)]
        end = len(head) + len(tail)
        ids[row, :end] = torch.tensor(head + tail)
        mask[row, :end] = 1
        labels[row, len(head) : end] = torch.tensor(tail)
    return Rows(ids, mask, labels)
