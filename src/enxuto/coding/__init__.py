"""Integers and arrays to bytes and back, without loss. numpy and numba only; nothing here knows torch or files."""

from enxuto.coding.stream import decode_array, decode_integers, encode_array, encode_integers

__all__ = ["decode_array", "decode_integers", "encode_array", "encode_integers"]
