"""Integers and arrays to bytes and back, without loss. numpy and numba only; nothing here knows torch or files."""

from enxuto.coding.arrays import decode_array, encode_array
from enxuto.coding.integers import decode_integers, encode_integers

__all__ = ["decode_array", "decode_integers", "encode_array", "encode_integers"]
