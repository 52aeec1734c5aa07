"""Codes as the tests of the coders want them."""

import numpy as np


def sparse_codes(count: int, symbols: int, sparsity: float, seed: int = 0) -> np.ndarray:
    """Codes around the middle symbol, which a fraction `sparsity` of them is at least."""
    chance = np.random.default_rng(seed)
    codes = np.clip(np.rint(chance.normal(symbols / 2, symbols / 8, count)), 0, symbols - 1)
    codes[chance.random(count) < sparsity] = symbols // 2
    return codes.astype(np.uint8 if symbols <= 256 else np.uint16)
