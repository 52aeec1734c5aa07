import os
import threading
import zipfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from enxuto.artifact import container, index
from enxuto.artifact import sections as sections_
from enxuto.artifact.container import Reader, read, sizes, write
from enxuto.artifact.index import DTYPES, NUMPY
from enxuto.artifact.sections import Section
from enxuto.errors import ArtifactError, OutputError, RangeError
from forge import checksums, coded, everything, forged, plain, same, sealed, taken_apart

law = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])


def some_sections(draw) -> list[Section]:
    sections = []
    for number in range(draw(st.integers(0, 3))):
        shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6))
        symbols = draw(st.sampled_from([None, None, 1, 2, 16, 256, 65_536]))
        if symbols is None:
            name = draw(st.sampled_from(DTYPES))
            dtype = NUMPY[name]
            most = 1 if name == "bool" else 255
            raw = draw(hnp.arrays(np.uint8, (*shape, dtype.itemsize), elements=st.integers(0, most)))
            sections.append(plain(f"t{number}", np.ascontiguousarray(raw).view(dtype).reshape(shape), name))
        else:
            dtype = np.uint8 if symbols <= 256 else np.uint16
            array = draw(hnp.arrays(dtype, shape, elements=st.integers(0, symbols - 1)))
            sections.append(coded(f"t{number}", array, symbols))
    return sections


def check_written(path: Path, meta: dict, sections: list[Section], **how: bool) -> bytes:
    """The bytes of the file, which gives back what was written; its ledger sums to its size."""
    ledger = write(path, meta, sections, **how)
    assert sum(ledger.values()) == path.stat().st_size
    assert sizes(path) == ledger
    back_meta, back = read(path)
    assert back_meta == meta
    assert len(back) == len(sections)
    assert all(map(same, back, sections))
    assert all(section.array.flags.writeable and section.array.flags.c_contiguous for section in back)
    return path.read_bytes()


@law
@given(st.data(), st.booleans())
def test_a_file_gives_back_what_was_written_and_its_ledger_sums_to_its_size(tmp_path, data, bare):
    meta = {"n": data.draw(st.integers()), "text": data.draw(st.text(max_size=20)), "list": [None, True, 0.1]}
    check_written(tmp_path / "x.nxt", meta, some_sections(data.draw), plain=bare)


@law
@given(st.data(), st.sampled_from([1, 2, 7, 24]), st.sampled_from([1, 5, 40, 4096]), st.booleans())
def test_tensors_of_several_pieces_in_small_blocks_come_back(tmp_path, data, piece, block, bare):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "PIECE", piece)
        patch.setattr(sections_, "_SMALL", 0)
        for module in (index, container):
            patch.setattr(module, "BLOCK_BYTES", block)
        sections = some_sections(data.draw)
        check_written(tmp_path / "x.nxt", {}, sections, plain=bare)
        with Reader(tmp_path / "x.nxt") as reader:
            for section in sections:
                parts = [part for part in reader.pieces(section.name) if part.size]
                assert b"".join(part.tobytes() for part in parts) == section.array.tobytes()
                assert len(parts) == section.entry.streams


SHAPES = [(0,), (0, 5), (3, 0, 2), (), (1,), (1, 1, 1), (2, 100), (100, 2), (1, 300), (299,), (3, 4, 5, 6), (1,) * 32, (7, 64)]


@pytest.mark.parametrize("symbols", [None, 5])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_shape_comes_back_from_pieces_whole(shape, symbols, tmp_path, monkeypatch):
    monkeypatch.setattr(index, "PIECE", 64)  # rows of 100 are longer, of 2 and 60 shorter, of 64 as long
    monkeypatch.setattr(sections_, "_SMALL", 0)
    count = int(np.prod(shape))
    array = np.random.default_rng(0).integers(0, 5, count).astype(np.uint8).reshape(shape)
    section = plain("a", array.astype(np.float32)) if symbols is None else coded("a", array, symbols)
    check_written(tmp_path / "x.nxt", {}, [section])


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_comes_back_from_pieces(dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(index, "PIECE", 50)
    monkeypatch.setattr(sections_, "_SMALL", 0)
    chance = np.random.default_rng(0)
    raw = chance.integers(0, 2 if dtype == "bool" else 256, (33, 7, NUMPY[dtype].itemsize)).astype(np.uint8)
    array = raw.view(NUMPY[dtype]).reshape(33, 7)
    check_written(tmp_path / "x.nxt", {}, [plain("a", array, dtype), plain("b", array[:, 0].copy(), dtype)])


def test_tensors_of_several_real_pieces_come_back(tmp_path):
    chance = np.random.default_rng(0)
    long_rows = np.zeros((2, index.PIECE + 3), np.uint8)
    long_rows[:, ::1000] = chance.integers(1, 4, long_rows[:, ::1000].shape)
    matrix = (chance.random((9000, 500)) < 0.01).astype(np.uint8)
    check_written(tmp_path / "x.nxt", {}, [coded("a", long_rows, 4), coded("b", matrix, 2), plain("c", np.arange(5))])
    _, streams = taken_apart(tmp_path / "x.nxt")
    assert len(streams) == 3 + 2 + 1


def test_nan_infinities_and_negative_zeros_come_back(tmp_path):
    bits = np.array([0x7FC00001, 0xFFC12345, 0x7F800001, 0x7F800000, 0xFF800000, 0x80000000] * 30, np.uint32)
    check_written(tmp_path / "x.nxt", {}, [plain("a", bits.view(np.float32)), plain("b", bits[:5].view(np.float32))])


def test_one_symbol_and_sixty_five_thousand_come_back(tmp_path):
    many = np.random.default_rng(0).permutation(65_536).astype(np.uint16)
    few = np.where(np.arange(9000) % 7 == 0, 65_535, 0).astype(np.uint16)
    check_written(
        tmp_path / "x.nxt",
        {},
        [coded("a", np.zeros((5, 5), np.uint8), 1), coded("b", many, 65_536), coded("c", few, 65_536), coded("d", few[:0], 1)],
    )


def test_codes_of_few_symbols_kept_as_uint16_come_back_as_uint16(tmp_path):
    check_written(tmp_path / "x.nxt", {}, [coded("a", np.arange(100, dtype=np.uint16) % 9, 9)])


def test_the_order_of_keys_in_meta_does_not_change_the_file(tmp_path):
    write(tmp_path / "a.nxt", {"x": 1, "y": {"p": 2, "q": 3}}, [])
    write(tmp_path / "b.nxt", {"y": {"q": 3, "p": 2}, "x": 1}, [])
    assert (tmp_path / "a.nxt").read_bytes() == (tmp_path / "b.nxt").read_bytes()


def test_a_tensor_called_header_is_counted_with_the_header(tmp_path):
    ledger = write(tmp_path / "x.nxt", {}, [plain("header", np.arange(9)), plain("b", np.arange(3))])
    assert sorted(ledger) == ["b", "header"]
    assert sum(ledger.values()) == (tmp_path / "x.nxt").stat().st_size
    assert sizes(tmp_path / "x.nxt") == ledger


def test_several_threads_write_and_read_the_same_as_one(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "PIECE", 5000)
    monkeypatch.setattr(container, "_FEW_ELEMENTS", 1)
    chance = np.random.default_rng(0)
    sections = [plain(f"t{i}", chance.normal(size=(50, 90 * (i + 1))).astype(np.float32)) for i in range(5)]
    sections += [coded(f"c{i}", chance.integers(0, 3, (200, 77)).astype(np.uint8), 4) for i in range(5)]
    files = []
    for workers in (1, 2, 7):
        monkeypatch.setattr(container, "_WORKERS", workers)
        files.append(check_written(tmp_path / "x.nxt", {}, sections))
    assert files[0] == files[1] == files[2]


def test_an_error_in_a_thread_is_the_error_of_the_writer_and_leaves_the_old_file(tmp_path, monkeypatch):
    monkeypatch.setattr(container, "_WORKERS", 3)
    write(tmp_path / "x.nxt", {"old": True}, [])
    wrong = coded("a", np.full(100, 9, np.uint8), 4)
    with pytest.raises(RangeError, match="code 9 is not below symbols=4"):
        write(tmp_path / "x.nxt", {}, [plain("b", np.arange(100)), wrong, plain("c", np.arange(100))])
    assert read(tmp_path / "x.nxt") == ({"old": True}, [])
    assert os.listdir(tmp_path) == ["x.nxt"]


# Elements that are not in memory


class Lazy:
    """Numbers made when they are asked for."""

    def __init__(self, dtype: str = "float32", short: int = 0) -> None:
        self.dtype, self.short, self.asked, self.lock = dtype, short, [], threading.Lock()

    def piece(self, start: int, stop: int) -> np.ndarray:
        with self.lock:
            self.asked.append((start, stop))
        return (np.arange(start, stop - self.short) % 251).astype(self.dtype)


def test_elements_are_asked_for_piece_by_piece_and_come_back(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "PIECE", 1000)
    array = (np.arange(300 * 70) % 251).reshape(300, 70)
    lazy, codes = Lazy(), Lazy("uint8")
    write(
        tmp_path / "lazy.nxt", {}, [Section("a", "float32", (300, 70), None, lazy), Section("b", "uint8", (300, 70), 251, codes)]
    )
    write(tmp_path / "now.nxt", {}, [plain("a", array.astype(np.float32)), coded("b", array.astype(np.uint8), 251)])
    assert (tmp_path / "lazy.nxt").read_bytes() == (tmp_path / "now.nxt").read_bytes()
    for source in (lazy, codes):
        assert sorted(source.asked) == list(pairwise([*range(0, 21_000, 980), 21_000]))
    assert np.array_equal(read(tmp_path / "lazy.nxt")[1][0].array, array)


@pytest.mark.parametrize("wrong", [Lazy("float64"), Lazy("uint8"), Lazy(short=1), Lazy(short=-1)])
def test_elements_that_are_not_as_described_are_refused(wrong, tmp_path):
    with pytest.raises(ArtifactError, match="'a' was asked for 20 elements as float32, but gave"):
        write(tmp_path / "x.nxt", {}, [Section("a", "float32", (4, 5), None, wrong)])
    assert not list(tmp_path.iterdir())


def test_sections_are_taken_one_by_one(tmp_path, monkeypatch):
    """No more than are under way are alive at a time, so that a file larger than memory can be written."""
    monkeypatch.setattr(container, "_WORKERS", 2)
    taken: list[int] = []

    def sections():
        for number in range(30):
            taken.append(number)
            yield plain(f"t{number}", np.full(2000, number))
            assert len(taken) - finished.get("done", 0) <= 2 + 2

    finished: dict[str, int] = {}
    encode = container.encode_array

    def counting(array, **options):
        stream = encode(array, **options)
        finished["done"] = finished.get("done", 0) + 1
        return stream

    monkeypatch.setattr(container, "encode_array", counting)
    write(tmp_path / "x.nxt", {}, sections())
    assert len(taken) == 30


# One tensor without the others


def test_one_tensor_is_read_though_another_block_is_damaged(tmp_path):
    chance, path = np.random.default_rng(0), tmp_path / "x.nxt"
    sections = [plain(f"t{i}", chance.normal(size=3000).astype(np.float32)) for i in range(4)]
    ledger = write(path, {"a": 1}, sections)
    data = bytearray(path.read_bytes())
    data[5 + ledger["t0"] + 100] ^= 1  # in t1
    path.write_bytes(data)
    with Reader(path) as reader:
        for number in (0, 2, 3):
            assert same(reader.section(f"t{number}"), sections[number])
        for look in (lambda: reader.section("t1"), reader.check, lambda: list(reader.sections())):
            with pytest.raises(ArtifactError, match=r"x\.nxt' was altered: the checksum of its block 1 is wrong"):
                look()
    with pytest.raises(ArtifactError, match="block 1"):
        read(path)
    assert sizes(path) == ledger  # which says that it does not look into tensors


def test_reading_one_tensor_reads_its_block_alone(tmp_path, monkeypatch):
    chance, path = np.random.default_rng(0), tmp_path / "x.nxt"
    ledger = write(path, {}, [plain(f"t{i}", chance.normal(size=3000).astype(np.float32)) for i in range(4)])
    asked: list[tuple[int, int]] = []
    with Reader(path) as reader:
        get = reader._bytes
        monkeypatch.setattr(reader, "_bytes", lambda start, end: asked.append((start, end)) or get(start, end))
        reader.section("t2")
    start = 5 + ledger["t0"] + ledger["t1"]
    assert asked == [(start, start + ledger["t2"])]


def test_a_reader_gives_what_read_gives_in_any_order(tmp_path):
    meta, sections = everything()
    write(tmp_path / "x.nxt", meta, sections)
    with Reader(tmp_path / "x.nxt") as reader:
        assert reader.meta == meta
        assert [*reader.entries.values()] == [section.entry for section in sections]
        for section in [*reversed(sections), *sections[::3]]:
            assert same(reader.section(section.name), section)


def test_every_stream_is_under_the_checksum_of_its_block(tmp_path):
    meta, sections = everything()
    write(tmp_path / "x.nxt", meta, sections, plain=True)
    text, streams = taken_apart(tmp_path / "x.nxt")
    found = index.blocks([len(stream) for stream in streams])
    assert len(found) > 1
    assert forged(text, b"".join(streams), [len(stream) for stream in streams]) == (tmp_path / "x.nxt").read_bytes()
    assert checksums(b"".join(streams), [len(stream) for stream in streams]) in (tmp_path / "x.nxt").read_bytes()


# Foreign files, and what is not written


def test_foreign_files_are_refused_by_name(tmp_path):
    (tmp_path / "empty").touch()
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))
    with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
        archive.writestr("data.pkl", b"x" * 100)
    (tmp_path / "folder").mkdir()
    for name in ("empty", "picture.png", "model.pt", "folder", "missing"):
        for look in (read, sizes):
            with pytest.raises(ArtifactError, match=name):
                look(tmp_path / name)


@pytest.mark.parametrize(("version", "words"), [(3, "upgrade enxuto"), (255, "upgrade enxuto"), (1, "it was never released")])
def test_another_version_is_named(version, words, tmp_path):
    (tmp_path / "x.nxt").write_bytes(sealed(b"", b"\0\4\2{}\0", b"\x93NXT" + bytes([version])))
    with pytest.raises(ArtifactError, match=rf"format version {version}, this enxuto reads 2; {words}"):
        read(tmp_path / "x.nxt")


@pytest.mark.skipif(os.geteuid() == 0, reason="the administrator may read everything")
def test_a_file_that_must_not_be_read_is_refused(tmp_path):
    write(tmp_path / "x.nxt", {}, [])
    (tmp_path / "x.nxt").chmod(0)
    with pytest.raises(ArtifactError, match="cannot be read"):
        read(tmp_path / "x.nxt")


def test_a_constant_too_large_for_its_file_is_padded_until_the_reader_may_believe_it(tmp_path):
    path = tmp_path / "x.nxt"
    zeros = np.zeros((80, 1 << 20), np.uint8)
    ledger = write(path, {}, [plain("zeros", zeros)])
    assert path.stat().st_size == 16 * 1024  # 80 MiB, of which 64 are free, and 1 KiB for each byte
    assert ledger["zeros"] == 20  # a byte for each piece
    assert np.array_equal(read(path)[1][0].array, zeros)
    data = bytearray(path.read_bytes())
    for place in (5 + 20, 9000):
        data[place] = 1
        path.write_bytes(data)
        with pytest.raises(ArtifactError, match="padding is not zero"):
            read(path)
        data[place] = 0


def test_sections_that_contradict_themselves_are_refused_before_anything_is_written(tmp_path):
    path, ones = tmp_path / "x.nxt", np.ones((2, 3), np.uint8)
    wrong = [
        [Section("a", "uint8", (3, 2), 4, ones)],
        [Section("a", "float32", (2, 3), None, ones)],
        [Section("a", "uint7", (2, 3), None, ones)],
        [Section("a", "uint8", (2, 3), 300, ones)],
        [Section("a", "uint8", (2, 3), 0, ones)],
        [Section("a", "bool", (2, 3), 2, ones.view(bool))],
        [Section("a", "uint8", (2, -3), None, Lazy("uint8"))],
        [Section("a", "uint8", (1,) * 33, None, Lazy("uint8"))],
        [plain("a", ones), plain("a", ones)],
    ]
    for sections in wrong:
        with pytest.raises(ArtifactError, match="'a'"):
            write(path, {}, sections)
    with pytest.raises(ArtifactError, match="has a zero letter in its name"):
        write(path, {}, [plain("a\0b", ones)])
    assert not list(tmp_path.iterdir())


def deep(depth: int) -> list:
    inner: list = []
    for _ in range(depth):
        inner = [inner]
    return inner


NO_JSON = {
    "not a number": float("nan"),
    "infinite": float("-inf"),
    "a set": {1, 2},
    "a numpy number": np.float32(1),
    "too deep": deep(100_000),
    "keys that are equal as texts": {1: 0, "1": 1},
    "half a letter": "\ud800",
}


@pytest.mark.parametrize("what", NO_JSON)
def test_a_meta_that_no_reader_would_take_is_refused(what, tmp_path):
    with pytest.raises(ArtifactError, match="is not JSON"):
        write(tmp_path / "x.nxt", {"a": NO_JSON[what]}, [])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stream", [b"\x0c", b"\xff\0\0"], ids=["next", "last"])
@pytest.mark.parametrize("count", [3, 3000], ids=["shared", "own"])
def test_methods_of_a_stream_that_names_none_are_refused(stream, count, tmp_path, monkeypatch):
    monkeypatch.setattr(container, "encode_array", lambda *_, **__: stream)
    write(tmp_path / "x.nxt", {}, [Section("w", "float32", (count,), None, np.ones(count, np.float32))])
    with (
        Reader(tmp_path / "x.nxt") as reader,
        pytest.raises(ArtifactError, match=r"x\.nxt' is damaged in tensor 'w': method (12|255) "),
    ):
        reader.methods(reader.entries["w"])


def test_a_folder_that_is_missing_is_an_output_error(tmp_path):
    with pytest.raises(OutputError):
        write(tmp_path / "nowhere" / "x.nxt", {}, [])


# How small


def lenet(biases: bool) -> tuple[dict, list[Section]]:
    """LeNet-300-100 as it is saved, with numbers by chance; its biases coded, or as float16."""
    chance = np.random.default_rng(0)
    meta, sections = {"edits": []}, []
    for layer, (out, inputs) in enumerate(((300, 784), (100, 300), (10, 100)), 1):
        meta["edits"].append({"path": f"fc{layer}", "coded": {"weight": ["table", 4]}})
        sections.append(coded(f"fc{layer}.coded.weight.codes", chance.integers(0, 16, (out, inputs)).astype(np.uint8), 16))
        sections.append(plain(f"fc{layer}.coded.weight.codebook", chance.normal(size=16).astype(np.float16)))
        if biases:
            meta["edits"][-1]["coded"]["bias"] = ["affine", 8, "tensor"]
            sections.append(coded(f"fc{layer}.coded.bias.codes", chance.integers(0, 255, out).astype(np.uint8), 255))
            sections.append(plain(f"fc{layer}.coded.bias.scale", chance.normal(size=1).astype(np.float32).reshape(())))
        else:
            sections.append(plain(f"fc{layer}.bias", chance.normal(size=out).astype(np.float16)))
    return meta, sections


@pytest.mark.parametrize(("biases", "most"), [(False, 117), (True, 114)])
def test_what_is_no_payload_of_a_net_of_three_layers_is_far_below_150_bytes(biases, most, tmp_path):
    ledger = write(tmp_path / "x.nxt", *lenet(biases))
    assert ledger["header"] <= most < 150
