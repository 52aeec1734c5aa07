"""Arrays that repeat are coded by what they repeat, come back bit for bit, and damage in them is found."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enxuto.coding import decode_array, encode_array
from enxuto.coding.arrays import array_costs
from enxuto.coding.repeats import read_matches, repeating, table_of, write_matches
from enxuto.coding.stream import MATCHES, METHODS, VALUES
from enxuto.errors import ArtifactError

law = settings(deadline=None, derandomize=True, max_examples=40)


def bits(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 2**32, shape, dtype=np.uint32)


def bank(size=128):
    """Cosines and sines, as a network holds them that computes a spectrum by a convolution."""
    angle = 2 * np.pi * np.outer(np.arange(size // 2 + 1), np.arange(size)) / size
    return np.concatenate([np.cos(angle), np.sin(angle)]).astype(np.float32)


@law
@given(st.integers(0, 2**32 - 1), st.sampled_from(["uint16", "float32", "int64", "complex128", "uint8"]), st.integers(1, 60))
def test_what_repeats_comes_back_bit_for_bit(seed, dtype, different):
    chance = np.random.default_rng(seed)
    values = chance.integers(0, 256, different * np.dtype(dtype).itemsize, dtype=np.uint8).view(dtype)
    array = np.concatenate([values[chance.integers(0, different, 400)], np.tile(values, 9)])
    coded = encode_array(array, matches=True)
    assert decode_array(coded, array.dtype, array.shape).tobytes() == array.tobytes()
    assert len(coded) <= 1 + array.nbytes


def test_weights_rounded_but_kept_as_floats_take_the_bits_of_their_rounding():
    codes = np.random.default_rng(0).integers(0, 16, (256, 100))
    floats = (codes * np.float32(0.0123)).astype(np.float32)
    coded = encode_array(floats, matches=True)
    assert METHODS[coded[0]] == METHODS[VALUES]
    assert len(coded) < codes.size / 2 + 200  # four bits each, and the table
    assert decode_array(coded, "float32", floats.shape).tobytes() == floats.tobytes()


def test_a_tensor_whose_second_half_is_its_first_takes_half():
    once = bits(5000)
    coded = encode_array(np.tile(once, 2), matches=True)
    assert METHODS[coded[0]] == METHODS[MATCHES]
    assert len(coded) < 1.05 * once.nbytes


def test_a_filter_bank_takes_a_third_of_what_its_bytes_take_apart():
    apart = encode_array(bank(), fast=True)
    coded = encode_array(bank(), matches=True)
    assert len(coded) < len(apart) / 3
    assert decode_array(coded, "float32", bank().shape).tobytes() == bank().tobytes()


def test_trained_weights_are_not_tried():
    weights = np.random.default_rng(0).normal(size=40_000).astype(np.float32).view(np.uint32)
    assert not repeating(weights)
    assert table_of(weights) is None
    assert repeating(np.tile(weights[:9000], 2))


def test_passages_of_zeros_alone_are_no_repetition():
    assert not repeating(np.zeros(10_000, np.uint32))


def test_streams_for_devices_hold_neither():
    assert encode_array(np.tile(bits(3000), 3))[0] not in (VALUES, MATCHES)


@pytest.mark.parametrize("change", ["cut", "longer", "no setting", "shorter count", "longer count", "empty"])
def test_damage_in_matches_is_found(change):
    body = write_matches(np.tile(bits(200), 3))
    count = 2400
    if change == "cut":
        body = body[:-9]
    elif change == "longer":
        body += b"\0\0"
    elif change == "no setting":
        body = b"\7" + body[1:]
    elif change == "empty":
        body = b""
    count += {"shorter count": -1, "longer count": 1}.get(change, 0)
    with pytest.raises(ArtifactError, match="damaged"):
        read_matches(body, count)


def test_more_values_than_elements_are_refused():
    codes = np.random.default_rng(0).integers(0, 200, 2000)
    coded = encode_array((codes * np.float32(0.3)).astype(np.float32), matches=True)
    assert coded[0] == VALUES
    for count in (150, 0):
        with pytest.raises(ArtifactError):
            decode_array(coded, "float32", (count,))


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint32"])
def test_every_method_that_is_tried_is_listed(dtype):
    array = np.tile(bits(300), 4).view(dtype)
    listed = array_costs(array, matches=True)
    assert listed[METHODS[MATCHES]] == 1 + len(write_matches(array))
    assert min(listed.values()) == len(encode_array(array, matches=True))
    assert METHODS[MATCHES] not in array_costs(array)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64", "complex128"])
def test_matches_are_always_tried_where_the_caller_knows(dtype):
    chance = np.random.default_rng(0)
    known = [chance.bytes(9) for _ in range(100)]
    text = b"".join(known[number] + chance.bytes(3) for number in chance.integers(0, 100, 3200))
    array = np.frombuffer(text, dtype)
    assert repeating(array.view(np.uint8)) is False
    coded = encode_array(array, matches="always")
    assert coded[0] == MATCHES
    assert len(coded) == 1 + len(write_matches(array))
    assert decode_array(coded, array.dtype, array.shape).tobytes() == text
    if dtype not in ("uint16", "uint32"):  # so few different ones that matches are tried for them too
        assert len(coded) < len(encode_array(array, matches=True))
    assert encode_array(array[:0], matches="always") == encode_array(array[:0])


def test_a_table_takes_less_memory_than_two_copies_of_the_values():
    values = np.tile(bits(5000), 400)
    tracemalloc.start()
    table, codes = table_of(values)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(table[codes], values)
    assert np.all(np.diff(table) > 0)
    assert peak < 2 * values.nbytes


def test_threads_look_back_together_no_further_than_one(monkeypatch):
    inside, most, sizes = [], [], [33 << 20, 16 << 20, 9 << 20, 5 << 20, 5000, 17 << 20, 300, 2 << 20] * 2

    def compress(data, _, filters):
        inside.append(filters[0]["dict_size"])
        most.append((sum(inside), len(inside)))
        time.sleep(0.01)
        inside.remove(filters[0]["dict_size"])
        return b""

    monkeypatch.setattr("enxuto.coding.repeats.lzma.compress", compress)
    threads = [threading.Thread(target=write_matches, args=(np.zeros(size, np.uint8),)) for size in sizes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(total for total, _ in most) <= 1 << 25
    assert max(count for _, count in most) > 1  # small ones at once
    assert len(most) == 3 * len(sizes)  # two samples, to choose a setting


def test_room_comes_back_when_something_fails(monkeypatch):
    def fail(*_, **__):
        raise MemoryError

    values = np.zeros(20 << 20, np.uint8)
    with monkeypatch.context() as patch:
        patch.setattr("enxuto.coding.repeats.lzma.compress", fail)
        for _ in range(3):
            with pytest.raises(MemoryError):
                write_matches(values)
    assert read_matches(write_matches(values), values.size) == values.tobytes()


def test_threads_that_look_for_matches_take_turns_with_memory():
    """In a process of its own: LZMA takes eleven times as much as it looks back."""
    code = """
import threading
from pathlib import Path
import numpy as np
from enxuto.coding.repeats import write_matches
values = np.zeros(9 << 20, np.uint32)
threads = [threading.Thread(target=write_matches, args=(values,)) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 600 << 10
