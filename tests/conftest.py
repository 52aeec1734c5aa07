"""What all tests share: one thread, so that results and times do not depend on the machine's cores."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded():
    """Each test starts from the same random numbers."""
    torch.manual_seed(0)
