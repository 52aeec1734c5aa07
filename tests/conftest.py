"""What all tests share: one thread, so that results and times do not depend on the machine's cores."""

import gc

import pytest
import torch
from tests.branches import in_a_branch

from enxuto.cli import subjects
from enxuto.evaluation import compare

torch.set_num_threads(1)


def pytest_collection_finish():
    """Thousands of tests are there for good: else every collection of garbage, which memory tests ask for, would walk them."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _branches(monkeypatch):
    """Files are judged in processes that start at once."""
    for place in (compare, subjects):
        monkeypatch.setattr(place, "in_fresh_process", in_a_branch)


@pytest.fixture(autouse=True)
def _seeded():
    """Each test starts from the same random numbers."""
    torch.manual_seed(0)
