import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from enxuto.functional.table import BINS, fit_codebook, nearest_entries, one_dimensional_kmeans

law = settings(deadline=None, max_examples=60, derandomize=True)
small = st.lists(st.floats(-100, 100, width=32).map(lambda x: round(x, 3)), min_size=1, max_size=9)


def cost(values: np.ndarray, centres: np.ndarray) -> float:
    return float(np.square(values[:, None] - np.asarray(centres, float)[None]).min(axis=1).sum())


def best_cost(values: np.ndarray, clusters: int) -> float:
    """Every way to cut the sorted values into consecutive clusters."""
    ordered = np.sort(values)
    least = np.inf
    for k in range(1, min(clusters, ordered.size) + 1):
        for cuts in itertools.combinations(range(1, ordered.size), k - 1):
            parts = np.split(ordered, cuts)
            least = min(least, sum(float(np.square(part - part.mean()).sum()) for part in parts))
    return least


@law
@given(small, st.integers(1, 5))
def test_kmeans_equals_the_best_of_all_partitions(values, clusters):
    x = np.array(values)
    centres = one_dimensional_kmeans(x, clusters)
    assert len(centres) <= clusters
    assert np.all(np.diff(centres) > 0)
    assert cost(x, centres) <= best_cost(x, clusters) * (1 + 1e-9) + 1e-9


@law
@given(small, st.integers(2, 5))
def test_a_codebook_with_zero_equals_the_best_for_the_other_values(values, entries):
    x = torch.tensor(values)
    book = fit_codebook(x, entries, zero=True)
    assert 0.0 in book.tolist()
    assert len(book) <= entries
    assert torch.equal(book, book.unique())
    others = x[x != 0].double().numpy()
    if others.size:
        assert cost(others, book.numpy()) <= best_cost(others, entries - 1) * (1 + 1e-5) + 1e-5


def lloyd(values: np.ndarray, centres: np.ndarray, rounds: int = 60) -> np.ndarray:
    for _ in range(rounds):
        owner = np.abs(values[:, None] - centres[None]).argmin(axis=1)
        centres = np.array([values[owner == i].mean() if (owner == i).any() else c for i, c in enumerate(centres)])
    return centres


@pytest.mark.parametrize("law_of", ["normal", "laplace", "cauchy", "lognormal", "shifted", "sparse", "two heaps"])
@pytest.mark.parametrize("clusters", [2, 7, 16])
def test_kmeans_never_loses_to_lloyd_or_to_quantiles(law_of, clusters):
    rng = np.random.default_rng(clusters)
    n = 3 * BINS
    values = {
        "normal": lambda: rng.normal(size=n),
        "laplace": lambda: rng.laplace(size=n),
        "cauchy": lambda: rng.standard_cauchy(size=n),
        "lognormal": lambda: rng.lognormal(0, 3, size=n),
        "shifted": lambda: 1e5 + rng.normal(size=n),
        "sparse": lambda: np.where(rng.random(n) < 0.7, 0, rng.normal(size=n)),
        "two heaps": lambda: np.append(rng.normal(size=n) * 1e-2, [-1e3, 3e3]),
    }[law_of]()
    ours = cost(values, one_dimensional_kmeans(values, clusters))
    quantiles = np.quantile(values, (np.arange(clusters) + 0.5) / clusters)
    for theirs in (quantiles, lloyd(values, quantiles), lloyd(values, np.linspace(values.min(), values.max(), clusters))):
        assert ours <= cost(values, theirs) * 1.01


def test_an_outlier_does_not_take_the_entries_of_all_others():
    values = np.append(np.random.default_rng(0).normal(size=20_000), 1e9)
    assert len(one_dimensional_kmeans(values, 16)) == 16


@law
@given(st.lists(st.floats(-(2.0**126), 2.0**126, width=32, allow_subnormal=False), min_size=1, max_size=20), st.integers(0, 99))
def test_nearest_entries_are_the_nearest(entries, seed):
    book = torch.tensor(entries).unique()
    x = torch.cat([torch.randn(50, generator=torch.Generator().manual_seed(seed)) * book.abs().max(), book])
    codes = nearest_entries(x, book)
    taken = (book[codes].double() - x.double()).abs()
    least = (book.double()[None] - x.double()[:, None]).abs().amin(dim=1)
    assert bool((taken <= least * (1 + 1e-5) + x.double().abs() * 1e-6).all())
    assert torch.equal(book[nearest_entries(book, book)], book)


@pytest.mark.parametrize("size", [1e-30, 1e-6, 1.0, 1e30])
def test_a_codebook_follows_the_size_of_the_weights(size):
    x = torch.randn(3000) * size
    book = fit_codebook(x, 16, zero=True)
    assert len(book) == 16
    relative = ((book[nearest_entries(x, book)] - x).double().square().sum() / x.double().square().sum()).sqrt()
    assert float(relative) < 0.15


@pytest.mark.parametrize("values", [[0.0], [0.3], [0.0, 0.0, 0.0], [0.25] * 9, [-1.0, 0.0, 1.0]])
@pytest.mark.parametrize("entries", [2, 4, 16])
def test_few_distinct_values_come_back_exactly(values, entries):
    x = torch.tensor(values)
    book = fit_codebook(x, entries, zero=entries > 2)
    if len(x.unique()) <= entries:
        assert torch.equal(book[nearest_entries(x, book)], x)


def test_kmeans_of_nothing_is_nothing():
    assert one_dimensional_kmeans(np.zeros(0), 4).size == 0


def test_a_codebook_is_fitted_where_nothing_can_be_kept():
    """A read-only install without a home: numba finds no folder for what it compiles."""
    code = """
import numba.core.caching, torch
numba.core.caching.CacheImpl._locator_classes = []
from enxuto.functional.table import fit_codebook
print(fit_codebook(torch.tensor([0.0, 1.0, 1.0, 5.0]), 3, zero=True).tolist())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "[0.0, 1.0, 5.0]\n", done.stderr
