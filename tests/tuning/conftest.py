"""Models of these tests are tiny: one thread is many times faster than threads that wait for each other."""

import gc

import pytest
import torch


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
