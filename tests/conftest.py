"""Fixtures that every package's tests share."""

import atexit
import gc
import os
from collections import Counter
from pathlib import Path

import pytest

from glmspectra.cli.imports import prepare_imports

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is fetched from a hub, in tests either
os.environ.setdefault("MPLBACKEND", "agg")
os.environ["LC_ALL"] = "C.UTF-8"  # what is compared is English, on a Chinese machine too

prepare_imports()  # as the commands do
gc.disable()  # while the libraries are imported, which leaves no garbage; on again below

os.fsync = lambda file: None  # what a loss of power would leave no test can see, and waiting for the disk takes long

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = REPOSITORY.parent / "shared"


def pytest_collection_modifyitems(items):
    import torch

    for item in items:
        if item.get_closest_marker("shared") and not SHARED.is_dir():
            item.add_marker(pytest.mark.skip(reason=f"needs the reference data of {SHARED}, which is not here"))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
    # Files with the most slow tests first, so that no process is left alone with one of them at the end.
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


def pytest_collection_finish():
    """Keep the collector from walking through every imported library again and again."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config):
    """A process of pytest-xdist, which has told everything by now, frees no library object by object: 1 to 2 s."""
    if hasattr(config, "workerinput"):
        atexit._run_exitfuncs()
        os._exit(0)


@pytest.fixture(autouse=True)
def english_again():
    """A command that was asked for Chinese leaves no later test in Chinese."""
    from glmspectra import language

    yield
    language.choose("auto")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of golden outputs, the real tokenizer and real data, beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the reference data of {SHARED}, which is not here")
    return SHARED
