import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from enxuto.artifact import container
from enxuto.artifact.container import Section, read, sizes, write
from enxuto.coding.adaptive import encode_text
from enxuto.coding.bits import write_varint
from enxuto.errors import ArtifactError, OutputError

GOLDEN = Path(__file__).parent / "golden" / "version1.nxt"
law = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])


def plain(name: str, array: np.ndarray, dtype: str | None = None) -> Section:
    return Section(name, dtype or array.dtype.name, array.shape, None, array)


def coded(name: str, array: np.ndarray, symbols: int) -> Section:
    return Section(name, array.dtype.name, array.shape, symbols, array)


def golden_input() -> tuple[dict, list[Section]]:
    """A file with every method of coding, from integers alone, so that it is the same on every machine."""
    steps = np.arange(1200, dtype=np.uint32)
    scattered = (steps * 2_654_435_761) >> 16  # Knuth's multiplicative hash: looks like chance, is none
    codes = np.where(scattered % 16 < 12, 3, scattered // 16 % 8).astype(np.uint8).reshape(40, 30)
    half = (0x3C00 + scattered[:24] % 512).astype(np.uint16)
    many = np.where(scattered % 8 < 6, 0, scattered % 300).astype(np.uint16)
    meta = {"layers": [{"path": "fc1", "kind": "CodedLinear", "args": {"bits": 3, "out": 40, "größe": 0.5}}]}
    return meta, [
        coded("fc1.coded.weight.codes", codes, 8),
        plain("fc1.coded.weight.codebook", half.view(np.float16)),
        plain("fc1.bias", (half.astype(np.uint32) << 16).view(np.float32)),
        plain("bn.num_batches_tracked", np.array(1000)),
        plain("mask", scattered.reshape(30, 40) % 16 == 0),
        plain("few", np.array([3, 200, 7])),
        plain("fewer", np.array([0.5, -3.0, 1e30], np.float32)),
        plain("old", half, "bfloat16"),
        coded("many", np.tile(many, 4), 300),
        coded("one", np.zeros((2, 0, 3), np.uint8), 1),
        plain("filled", np.full((64, 64), 0.5, np.float32)),
        plain("sparse", np.where(scattered % 16 == 1, scattered, 0).astype(np.uint32)),
    ]


def same(a: Section, b: Section) -> bool:
    heads = (a.name, a.dtype, a.shape, a.symbols, a.array.dtype, a.array.shape)
    return heads == (b.name, b.dtype, b.shape, b.symbols, b.array.dtype, b.array.shape) and a.array.tobytes() == b.array.tobytes()


def forged(text: str | bytes, *, lengths: tuple[int, ...] = (), payload: bytes = b"", letters: int | None = None) -> bytes:
    """A file whose checksum is right and whose header says whatever the test wants."""
    text = text.encode() if isinstance(text, str) else text
    text += b"\n" + b"".join(map(write_varint, lengths))
    header = encode_text(text, container._PRIMER)
    head = write_varint(len(text) if letters is None else letters) + write_varint(len(header)) + header
    return sealed(container.MAGIC + b"\x01" + head + payload)


def sealed(body: bytes) -> bytes:
    return body + zlib.crc32(body).to_bytes(4, "little")


@pytest.fixture
def tiny(tmp_path) -> Path:
    path = tmp_path / "tiny.nxt"
    codes = np.array([[0, 1, 1], [1, 2, 1]], np.uint8)
    write(path, {"a": 1}, [coded("codes", codes, 3), plain("bias", np.array([0.5, -1.25], np.float32))])
    return path


def some_sections(draw) -> list[Section]:
    sections = []
    for index in range(draw(st.integers(0, 3))):
        shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6))
        symbols = draw(st.sampled_from([None, 1, 2, 16, 256, 65_536]))
        if symbols is None:
            name = draw(st.sampled_from(list(container._DTYPES)))
            dtype = container._DTYPES[name]
            most = 1 if name == "bool" else 255
            raw = draw(hnp.arrays(np.uint8, (*shape, dtype.itemsize), elements=st.integers(0, most)))
            sections.append(plain(f"t{index}", np.ascontiguousarray(raw).view(dtype).reshape(shape), name))
        else:
            dtype = np.uint8 if symbols <= 256 else np.uint16
            array = draw(hnp.arrays(dtype, shape, elements=st.integers(0, symbols - 1)))
            sections.append(coded(f"t{index}", array, symbols))
    return sections


@law
@given(st.data())
def test_a_file_gives_back_what_was_written_and_its_ledger_sums_to_its_size(tmp_path, data):
    sections, path = some_sections(data.draw), tmp_path / "x.nxt"
    meta = {"n": data.draw(st.integers()), "text": data.draw(st.text(max_size=20)), "list": [None, True, 0.1]}
    ledger = write(path, meta, sections)
    assert sum(ledger.values()) == path.stat().st_size
    assert sizes(path) == ledger
    back_meta, back = read(path)
    assert back_meta == meta
    assert len(back) == len(sections)
    assert all(map(same, back, sections))
    assert all(section.array.flags.writeable and section.array.flags.c_contiguous for section in back)


def test_the_golden_file_is_written_and_read_byte_for_byte(tmp_path):
    meta, sections = golden_input()
    write(tmp_path / "now.nxt", meta, sections)
    assert (tmp_path / "now.nxt").read_bytes() == GOLDEN.read_bytes()
    back_meta, back = read(GOLDEN)
    assert back_meta == meta
    assert all(map(same, back, sections))


def test_the_order_of_keys_in_meta_does_not_change_the_file(tmp_path):
    write(tmp_path / "a.nxt", {"x": 1, "y": {"p": 2, "q": 3}}, [])
    write(tmp_path / "b.nxt", {"y": {"q": 3, "p": 2}, "x": 1}, [])
    assert (tmp_path / "a.nxt").read_bytes() == (tmp_path / "b.nxt").read_bytes()


def test_a_tensor_called_header_is_counted_with_the_header(tmp_path):
    ledger = write(tmp_path / "x.nxt", {}, [plain("header", np.arange(9)), plain("b", np.arange(3))])
    assert sorted(ledger) == ["b", "header"]
    assert sum(ledger.values()) == (tmp_path / "x.nxt").stat().st_size
    assert sizes(tmp_path / "x.nxt") == ledger


def test_a_file_cut_off_anywhere_is_refused(tiny):
    data = tiny.read_bytes()
    for kept in range(len(data)):
        tiny.write_bytes(data[:kept])
        for look in (read, sizes):
            with pytest.raises(ArtifactError):
                look(tiny)


def test_a_file_with_any_bit_flipped_is_refused(tiny):
    data = tiny.read_bytes()
    for position in range(8 * len(data)):
        broken = bytearray(data)
        broken[position // 8] ^= 1 << position % 8
        tiny.write_bytes(broken)
        for look in (read, sizes):
            with pytest.raises(ArtifactError):
                look(tiny)


def test_a_file_with_any_byte_changed_and_its_checksum_mended_is_read_or_refused(tiny):
    data = tiny.read_bytes()[:-4]
    for place in range(len(data)):
        for value in (0, 1, 127, 128, 255, data[place] ^ 1):
            tiny.write_bytes(sealed(data[:place] + bytes([value]) + data[place + 1 :]))
            try:
                read(tiny)
            except ArtifactError:
                continue


@law
@given(st.binary(max_size=60))
def test_any_bytes_behind_the_magic_are_read_or_refused(tmp_path, body):
    (tmp_path / "x.nxt").write_bytes(sealed(container.MAGIC + b"\x01" + body))
    try:
        read(tmp_path / "x.nxt")
    except ArtifactError:
        return


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


def test_a_newer_version_is_named(tiny):
    data = bytearray(tiny.read_bytes()[:-4])
    data[4] = 2
    tiny.write_bytes(sealed(bytes(data)))
    with pytest.raises(ArtifactError, match=r"format version 2, this enxuto reads 1; upgrade"):
        read(tiny)


@pytest.mark.parametrize(
    ("text", "lengths", "payload"),
    [
        ("nonsense", (), b""),
        (b"\xff\xfe", (), b""),
        ("[" * 100_000, (), b""),
        ("{}", (), b""),
        ("[{},{}]", (), b""),
        ('[{"a":NaN},[]]', (), b""),
        ("[{},[]]", (), b"stray"),
        ("[{},[]]", (1,), b"\x00"),
        ('[{},[["a","float32",[2]]]]', (1,), b"\x00"),
        ('[{},[["a","object",[2],null]]]', (1,), b"\x00"),
        ('[{},[["a","float32",[-1],null]]]', (1,), b"\x00"),
        ('[{},[["a","float32",[true],null]]]', (1,), b"\x00"),
        ('[{},[["a","float32",[2.0],null]]]', (1,), b"\x00"),
        ('[{},[["a","float32",[' + "1," * 40 + "1],null]]]", (1,), b"\x00"),
        ('[{},[["a","float32",[2],16]]]', (1,), b"\x00"),
        ('[{},[["a","uint8",[2],257]]]', (1,), b"\x00"),
        ('[{},[["a","uint8",[2],0]]]', (1,), b"\x00"),
        ('[{},[["a","uint8",[2],true]]]', (1,), b"\x00"),
        ('[{},[["a","uint8",[2],4],["a","uint8",[2],4]]]', (1, 1), b"\x00\x00"),
        ('[{},[["a","uint8",[2],4]]]', (9,), b"\x00"),
        ('[{},[["a","uint8",[2],4]]]', (0,), b""),
        ('[{},[["a","uint8",[100000000000],4]]]', (1,), b"\x00"),
        ('[{},[["a","float64",[4000000000,4000000000,4000000000],null]]]', (1,), b"\x00"),
        ('[{},[["a","float64",[0,99999999999999999999],null]]]', (0,), b""),
        ('[{},[["a","float32",[16777216],null],["b","float32",[16777216],null]]]', (1, 1), b"\x00\x00"),
    ],
)
def test_a_lying_header_is_refused_before_memory_is_taken(tmp_path, text, lengths, payload):
    path = tmp_path / "x.nxt"
    path.write_bytes(forged(text, lengths=lengths, payload=payload))
    with pytest.raises(ArtifactError, match=r"x\.nxt"):
        read(path)


@pytest.mark.parametrize("letters", [0, 3, 1 << 21, 1 << 22, 1 << 40])
def test_a_header_that_lies_about_its_own_length_is_refused(tmp_path, letters):
    path = tmp_path / "x.nxt"
    path.write_bytes(forged("[{},[]]", letters=letters))
    with pytest.raises(ArtifactError):
        read(path)


def test_a_constant_too_large_for_its_file_is_padded_until_the_reader_may_believe_it(tmp_path):
    path = tmp_path / "x.nxt"
    zeros = np.zeros((80, 1 << 20), np.uint8)
    ledger = write(path, {}, [plain("zeros", zeros)])
    assert path.stat().st_size == 16 * 1024  # 80 MiB, of which 64 are free, and 1 KiB for each byte
    assert ledger["zeros"] == 1
    assert np.array_equal(read(path)[1][0].array, zeros)


def test_sections_that_contradict_themselves_are_refused_before_anything_is_written(tmp_path):
    path, ones = tmp_path / "x.nxt", np.ones((2, 3), np.uint8)
    wrong = [
        [Section("a", "uint8", (3, 2), 4, ones)],
        [Section("a", "float32", (2, 3), None, ones)],
        [Section("a", "uint7", (2, 3), None, ones)],
        [Section("a", "uint8", (2, 3), 300, ones)],
        [plain("a", ones), plain("a", ones)],
    ]
    for sections in wrong:
        with pytest.raises(ArtifactError, match="'a'"):
            write(path, {}, sections)
    for meta in ({"a": float("nan")}, {"a": {1, 2}}, {"a": np.float32(1)}):
        with pytest.raises(ArtifactError, match="is not JSON"):
            write(path, meta, [])
    assert not path.exists()


def test_a_folder_that_is_missing_is_an_output_error(tmp_path):
    with pytest.raises(OutputError):
        write(tmp_path / "nowhere" / "x.nxt", {}, [])


def test_the_header_of_a_net_of_three_layers_takes_at_most_100_bytes(tmp_path):
    meta, sections = {"edits": []}, []
    for layer, (out, inputs) in enumerate(((300, 784), (100, 300), (10, 100)), 1):
        meta["edits"].append({"path": f"fc{layer}", "coded": {"weight": ["table", 4]}})
        sections.append(coded(f"fc{layer}.coded.weight.codes", np.zeros((out, inputs), np.uint8), 16))
        sections.append(plain(f"fc{layer}.coded.weight.codebook", np.zeros(16, np.float16)))
        sections.append(plain(f"fc{layer}.bias", np.zeros(out, np.float16)))
    assert write(tmp_path / "x.nxt", meta, sections)["header"] <= 100
