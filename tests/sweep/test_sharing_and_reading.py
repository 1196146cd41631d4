"""The pieces of a sweep on their own: sharing out by cost, reading ahead, devices, options, the progress bar."""

import io
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console

from glmspectra.checkpoint import Part
from glmspectra.device import choose_device
from glmspectra.errors import CheckpointError, RequestError
from glmspectra.progress import time_left
from glmspectra.sweep import SweepOptions, progress, readahead
from glmspectra.sweep.cost import spectrum_cost, value_cost
from glmspectra.sweep.processes import share_out
from glmspectra.sweep.readahead import READ_AHEAD_CEILING, anonymous_bytes, read_ahead

CHATGLM2_LAYER = [(4608, 4096), (4096, 4096), (27392, 4096), (4096, 13696)]


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_shares_cover_everything_once_and_are_nearly_equal(count):
    costs = [spectrum_cost([shape]) for shape in CHATGLM2_LAYER * 28]
    shares = share_out(costs, count)
    assert sorted(index for share in shares for index in share) == list(range(112))
    sums = [sum(costs[index] for index in share) for share in shares]
    assert max(sums) <= 1.05 * min(sums)
    assert all(share == sorted(share) for share in shares), "each process goes in depth order"


def test_sharing_by_number_would_not_do():
    costs = [spectrum_cost([shape]) for shape in CHATGLM2_LAYER * 28]
    dealt = [sum(costs[start::4]) for start in range(4)]
    assert max(dealt) > 1.5 * min(dealt)


def test_more_processes_than_matrices_leaves_some_idle():
    assert share_out([1.0, 5.0], 3) == [[1], [0], []]


def test_cost_grows_with_the_longer_side_and_the_cube_of_the_shorter():
    assert spectrum_cost([(27392, 4096)]) > 1.5 * spectrum_cost([(4096, 4096)])
    assert spectrum_cost([(4096, 13696)]) == spectrum_cost([(13696, 4096)])
    assert spectrum_cost([(8192, 8192)]) == pytest.approx(8 * spectrum_cost([(4096, 4096)]))
    tall_by_square = [spectrum_cost([(27392, 4096)], d) / spectrum_cost([(4096, 4096)], d) for d in ("cpu", "cuda:0")]
    assert tall_by_square[0] > 2
    # Measured on an H100, Gram matrix and batched eigenvalues: 0.017 + 0.065 s against 0.0025 + 0.065 s.
    assert tall_by_square[1] == pytest.approx(0.082 / 0.0675, rel=0.02)
    assert value_cost([(10, 10), (20, 10)]) == value_cost([(30, 10)])


class FakeCheckpoint:
    """Counts what is held: `read` gives a tensor of ones, `release` takes it back."""

    def __init__(self, fails_at=None):
        self.fails_at = fails_at
        self.events, self.changed = [], threading.Condition()

    def read_matrix(self, record, expert=0):
        name = record.name
        if name == self.fails_at:
            raise CheckpointError(f"{name} is truncated.")
        self._note("read", name)
        return torch.ones(64, 64)

    def release(self, name, expert=None):
        self._note("release", name)

    def _note(self, event, name):
        with self.changed:
            self.events.append((event, name))
            self.changed.notify_all()

    def was_read(self, name):
        """Wait until it is; False where nobody reads it."""
        with self.changed:
            return self.changed.wait_for(lambda: ("read", name) in self.events, timeout=20)


def record(name, shape=(64, 64), quantization=None):
    rows, columns = shape
    return SimpleNamespace(
        name=name,
        rows=rows,
        columns=columns,
        quantization=quantization,
        experts=0,
        matrix_parts=[Part("whole", 0, rows)],
    )


def test_the_next_is_read_while_the_current_one_is_in_hand():
    records = [record(str(number)) for number in range(6)]
    checkpoint = FakeCheckpoint()
    for current, following in zip(read_ahead(checkpoint, records), [*records[1:], None], strict=True):
        if following is not None:
            assert checkpoint.was_read(following.name), f"{following.name} waits until {current[0].name} is done with"


def test_every_tensor_is_released_and_at_most_two_are_held():
    checkpoint = FakeCheckpoint()
    names = [str(number) for number in range(5)]
    seen = []
    for r, _, _ in read_ahead(checkpoint, [record(name) for name in names]):
        time.sleep(0.02)  # time enough to read as far ahead as it would
        seen.append(r.name)
    assert seen == names
    held = largest = 0
    for event, _ in checkpoint.events:
        held += 1 if event == "read" else -1
        largest = max(largest, held)
    assert held == 0
    assert largest == 2


def test_two_large_dequantized_matrices_are_never_held_together():
    embedding = (65024, 4096)
    records = [record(str(number), embedding, "int4") for number in range(3)]
    assert 2 * anonymous_bytes(records[0]) > READ_AHEAD_CEILING
    assert anonymous_bytes(record("plain", embedding)) == 0
    checkpoint = FakeCheckpoint()
    for _ in read_ahead(checkpoint, records):
        time.sleep(0.01)
    assert [event for event, _ in checkpoint.events] == ["read", "release"] * 3


def test_an_unreadable_tensor_is_raised_in_its_turn():
    checkpoint, seen = FakeCheckpoint(fails_at="2"), []
    with pytest.raises(CheckpointError, match="2 is truncated"):
        for r, _, _ in read_ahead(checkpoint, [record(str(number)) for number in range(4)]):
            seen.append(r.name)
    assert seen == ["0", "1"], "those before it are measured first"


def test_leaving_early_stops_the_reader():
    before = threading.active_count()
    for _ in read_ahead(FakeCheckpoint(), [record(str(number)) for number in range(4)]):
        break
    for thread in threading.enumerate():
        if thread.name.startswith("glmspectra-read"):
            thread.join(timeout=5)
    assert threading.active_count() <= before


def test_reading_touches_every_page(tmp_path, monkeypatch):
    np.arange(1 << 20, dtype=np.float16).tofile(tmp_path / "weights")
    mapped = torch.from_file(str(tmp_path / "weights"), size=1 << 20, dtype=torch.float16).view(1024, 1024)
    checkpoint = SimpleNamespace(read_matrix=lambda record, expert: mapped, release=lambda name: None)
    before = _file_pages()
    readahead._read(checkpoint, record("a", (1024, 1024)), 0, "cpu", None)
    assert _file_pages() - before >= 1 << 20, "most of the 2 MiB are mapped in"


def _file_pages():
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["RssFile"].split()[0]) * 1024


@pytest.mark.parametrize("wanted", ["gpu0", "cuda:x", "auto:0", "CPU", ""])
def test_an_unknown_device_is_refused(wanted):
    with pytest.raises(RequestError, match="is not a device: say auto, cpu, cuda or cuda:N"):
        choose_device(wanted)


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    with pytest.raises(RequestError, match="no CUDA device"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto", local_rank=1) == choose_device("cuda", local_rank=3) == torch.device("cuda:1")
    assert choose_device("cuda:0", local_rank=1) == torch.device("cuda:0")
    assert choose_device("cpu", local_rank=1) == torch.device("cpu")
    with pytest.raises(RequestError, match="there are 2 CUDA devices here, cuda:0 to cuda:1"):
        choose_device("cuda:2")


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"method": "fast"}, "--method is exact or topk"),
        ({"split": "all"}, "--split is no, parts or heads"),
        ({"top_k": 0}, "--top-k is 0; ask for at least one"),
        ({"rtol": 1.0}, "--rtol is 1.0; it is a relative error"),
        ({"vectors": -1}, "--vectors is -1"),
        ({"values": False, "spectrum": False}, "nothing to measure"),
    ],
)
def test_options_that_cannot_be_are_refused_in_words(wrong, sentence):
    with pytest.raises(RequestError, match=sentence):
        SweepOptions(**wrong)


def test_only_what_changes_a_number_is_in_the_stamped_options():
    fast = SweepOptions(device="cuda", quiet=True, fresh=True, vectors=8, top_k=3)
    assert fast.of_kind("spectrum") == SweepOptions().of_kind("spectrum"), "top_k does not touch the exact method"
    assert fast.of_kind("values") == SweepOptions(rtol=0.1, method="topk").of_kind("values")
    for other in ({"method": "topk"}, {"rtol": 1e-6}, {"split": "parts"}):
        assert SweepOptions(**other).of_kind("spectrum") != SweepOptions().of_kind("spectrum")
    assert SweepOptions(method="topk", top_k=3).of_kind("spectrum") != SweepOptions(method="topk").of_kind("spectrum")


def bar(seconds, monkeypatch, quiet=False):
    monkeypatch.setattr(progress, "SECONDS_BEFORE_SHOWN", 0.1)
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with progress.SweepProgress(4, cost=8.0, quiet=quiet, console=console) as shown:
        shown.advance(2 * 10**9, 2.0)
        time.sleep(seconds)
        shown.advance(2 * 10**9, 2.0)
        time.sleep(0.15 if seconds else 0)
    return console.file.getvalue()


def test_the_bar_shows_matrices_rate_and_time_left_on_what_takes_long(monkeypatch):
    text = bar(0.4, monkeypatch)
    assert "2 of 4 matrices" in text
    assert "GB/s" in text
    assert " s left" in text


def test_no_bar_on_what_is_done_at_once_or_when_quiet(monkeypatch):
    assert bar(0.0, monkeypatch) == ""
    assert bar(0.4, monkeypatch, quiet=True) == ""


def test_time_left_reads_like_people_say_it():
    assert [time_left(s) for s in (-1, 40.4, 200, 7500)] == ["0 s", "40 s", "3 min 20 s", "2 h 05 min"]
