"""Models of these tests are tiny: one thread is many times faster than threads that wait for each other."""

import gc

import pytest
import torch

from tests.tuning.tiny_run import write_data, write_model


@pytest.fixture(scope="package", autouse=True)
def small_work():
    """One thread, and no collection of what the imports left: the Trainer collects at the start of each run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a ChatGLM2 of two tiny layers."""
    return write_model(tmp_path_factory.mktemp("model"), "chatglm")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A file of rows to train on."""
    return write_data(tmp_path_factory.mktemp("data"))
