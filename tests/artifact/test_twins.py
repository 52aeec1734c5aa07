"""Tensors that are there twice are found by reading each of them once."""

from __future__ import annotations

import numpy as np

from enxuto.artifact.spans import Span
from enxuto.artifact.twins import twins


def test_each_tensor_is_read_once_however_many_begin_alike():
    rows = np.zeros((400, 1000), np.uint8)
    rows[:, 900] = np.arange(400) % 200  # neither at the start nor in the middle
    rows[:, 901] = np.arange(400) % 200 % 3
    data, asked = rows.tobytes(), []

    def read(start, length):
        asked.append(length)
        return data[start : start + length]

    spans = [Span(f"t{n}", "uint8", (1000,), 1000 * n, 1000) for n in range(400)]
    assert twins(read, spans) == [[n, f"t{n}", f"t{n - 200}"] for n in range(200, 400)]
    assert sum(asked) == 400 * (1000 + 2 * 64)


def test_one_that_is_alone_is_not_read():
    data = np.random.default_rng(0).bytes(5000)
    spans = [Span(f"t{n}", dtype, (500,), 500 * n, 500) for n, dtype in enumerate(["uint8", "int8"] * 5)]
    asked = []

    def read(start, length):
        asked.append(length)
        return data[start : start + length]

    assert twins(read, spans) == []
    assert max(asked) <= 64
