import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enxuto.artifact import index
from enxuto.artifact.container import Reader, read, sizes, write
from enxuto.artifact.index import DTYPES, NUMPY, Entry, blocks, places, read_index, shares, shelves, write_index
from enxuto.coding.adaptive import MAX_TEXT
from enxuto.errors import ArtifactError
from forge import plain

law = settings(deadline=None, derandomize=True)
shapes = st.lists(st.integers(0, 40), max_size=5).map(tuple).filter(lambda shape: math.prod(shape) < 20_000)
entries = st.lists(
    st.builds(
        Entry,
        st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=12),
        st.sampled_from(["uint8", "uint16"]),
        shapes,
        st.sampled_from([None, 1, 16, 256]),
    ),
    max_size=6,
    unique_by=lambda entry: entry.name,
)


@law
@given(entries, st.booleans(), st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5) | st.none(), max_size=4))
def test_an_index_comes_back(entries, bare, meta):
    lengths = [1 + i * i for i in range(sum(entry.streams for entry in entries))]
    data = write_index(meta, entries, lengths, plain=bare)
    assert read_index(data + b"checksums") == (meta, entries, lengths, len(data))


@law
@given(st.lists(st.tuples(st.integers(1, 3), st.lists(st.integers(1, 9), max_size=4)), min_size=1, max_size=9), st.booleans())
def test_what_lies_on_shelves_comes_back(chosen, bare):
    numbers = {number: place for place, number in enumerate(dict.fromkeys(number for number, _ in chosen), start=1)}
    entries = [
        Entry(str(place), "int8", tuple(shape), None, numbers[number])
        for place, (number, shape) in enumerate(chosen)
        if math.prod(shape) < 400
    ]
    if [*dict.fromkeys(entry.shelf for entry in entries)] != [*range(1, len(numbers) + 1)]:
        return
    data = write_index({}, entries, [7] * len(numbers), plain=bare)
    _, back, lengths, _ = read_index(data)
    assert [(entry, entry.shelf) for entry in back] == [(entry, entry.shelf) for entry in entries]
    held = shelves(back)
    assert [shelf.count for shelf in held] == [sum(e.count for e in back if e.shelf == k) for k in numbers.values()]
    assert sum(shares(back, [1000] * len(held)).values()) == 1000 * len(held)
    for entry, (stream, start) in zip(back, places(back).values(), strict=True):
        assert stream == entry.shelf - 1
        assert 0 <= start <= start + entry.count <= held[stream].count
    assert lengths == [7] * len(numbers)


def test_a_size_that_the_tensor_before_begins_with_is_a_zero():
    rows = [Entry(name, "int8", shape, None) for name, shape in (("a", (70, 3)), ("b", (70,)), ("c", ()), ("d", (9, 70, 70)))]
    data = write_index({}, rows, [1] * 4, plain=True)
    assert data.endswith(bytes([71, 4, 0, 10, 0, 0, 1, 1, 1, 1]))


@law
@given(shapes, st.integers(1, 400))
def test_pieces_tile_a_tensor_in_whole_rows_where_a_row_fits(shape, piece):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "PIECE", piece)
        entry = Entry("a", "uint8", shape, None)
        pieces = list(entry.pieces())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "PIECE", piece)
        assert entry.streams == len(pieces)
    count = math.prod(shape)
    assert [start for start, _, _ in pieces] == [0, *(stop for _, stop, _ in pieces)][: len(pieces)]
    assert (pieces[-1][1] if pieces else 0) == count
    row = count // shape[0] if count and shape else 1
    for start, stop, part in pieces:
        assert 0 < stop - start == math.prod(part) <= piece
        if row <= piece:
            assert start % row == 0
            assert stop % row == 0
            assert part == ((stop - start) // row, row) if row > 1 else (stop - start,)
            assert stop == count or stop - start > piece - row  # as many rows as fit
        else:
            assert stop == count or stop - start == piece


@law
@given(st.lists(st.sampled_from([1, 100, 2000, 4095, 4096, 9000]), max_size=30))
def test_a_block_ends_behind_the_stream_that_fills_it(lengths):
    found = blocks(lengths)
    assert [number for first, last in found for number in range(first, last)] == list(range(len(lengths)))
    for first, last in found:
        assert sum(lengths[first : last - 1]) < 4096
        assert sum(lengths[first:last]) >= 4096 or last == len(lengths)


def test_an_empty_axis_counts_as_one_so_that_the_others_stay_bounded():
    assert Entry("a", "float64", (0, 5, 7), None).nbytes == 280
    assert Entry("a", "float64", (), None).nbytes == 8


def test_dtypes_are_written_as_their_place_and_their_order_never_changes():
    assert DTYPES[:4] == ("bool", "uint8", "uint16", "uint32")
    assert DTYPES[9:] == ("float16", "float32", "float64", "complex64", "complex128", "bfloat16", "float8_e4m3fn", "float8_e5m2")
    assert len(DTYPES) == 17 == len(NUMPY)


def test_an_index_of_many_tensors_is_plain_where_its_text_is_too_long_to_be_coded(tmp_path):
    path = tmp_path / "x.nxt"
    sections = [plain(f"a.tensor.with.a.long.name.{'x' * 60}.{i}", np.zeros(0, np.uint8)) for i in range(12_000)]
    ledger = write(path, {}, sections)
    assert sizes(path) == ledger
    assert path.stat().st_size > MAX_TEXT
    with Reader(path) as reader:
        assert list(reader.entries) == [section.name for section in sections]
    write(path, {}, sections[:10_000])
    assert path.stat().st_size < MAX_TEXT / 8
    assert len(read(path)[1]) == 10_000


def test_a_plain_index_is_there_for_readers_with_little_memory(tmp_path):
    write(tmp_path / "x.nxt", {"say": "what it is"}, [plain("a.weight", np.arange(3))], plain=True)
    data = (tmp_path / "x.nxt").read_bytes()
    assert b'{"say":"what it is"}' in data
    assert b"a.weight\0" in data


def test_an_index_that_is_too_long_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "MAX_INDEX_BYTES", 100)
    for bare in (False, True):
        with pytest.raises(ArtifactError, match="the index takes 115 bytes, more than 100; shorten names or meta"):
            write(tmp_path / "x.nxt", {}, [plain("a" * 100, np.arange(300))], plain=bare)
    assert not list(tmp_path.iterdir())
