"""Files cut, flipped and patched: refused, or read where whoever damaged them mended every checksum too."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from enxuto.artifact.container import read, sizes, write
from enxuto.errors import ArtifactError
from forge import coded, everything, forged, mended, plain, same, sealed, taken_apart

law = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(params=[False, True], ids=["coded index", "plain index"])
def tiny(tmp_path, request):
    path = tmp_path / "tiny.nxt"
    codes = np.array([[0, 1, 1], [1, 2, 1]], np.uint8)
    write(path, {"a": 1}, [coded("codes", codes, 3), plain("bias", np.array([0.5, -1.25], np.float32))], plain=request.param)
    return path


@pytest.fixture(params=[False, True], ids=["coded index", "plain index"])
def whole(tmp_path, request):
    write(tmp_path / "whole.nxt", *everything(), plain=request.param)
    return tmp_path / "whole.nxt"


def read_or_refused(path):
    """What the file says, which is as it says; or nothing, when it is refused as it should be."""
    try:
        _, sections = read(path)
    except ArtifactError:
        return None
    for section in sections:
        assert section.array.shape == section.shape
        assert section.symbols is None or section.array.size == 0 or section.array.max() < section.symbols
    return sections


def test_a_file_cut_off_anywhere_is_refused(tiny):
    data = tiny.read_bytes()
    for kept in range(len(data)):
        tiny.write_bytes(data[:kept])
        for look in (read, sizes):
            with pytest.raises(ArtifactError):
                look(tiny)


def test_a_file_with_any_bit_flipped_is_refused(tiny):
    data, ledger = tiny.read_bytes(), sizes(tiny)
    for position in range(8 * len(data)):
        broken = bytearray(data)
        broken[position // 8] ^= 1 << position % 8
        tiny.write_bytes(broken)
        with pytest.raises(ArtifactError):
            read(tiny)
        if 5 <= position // 8 < len(data) - ledger["header"] + 5:
            assert sizes(tiny) == ledger  # which does not look into tensors
        else:
            with pytest.raises(ArtifactError):
                sizes(tiny)


def test_a_whole_file_cut_or_flipped_in_many_places_is_refused(whole):
    data = whole.read_bytes()
    for place in [*range(0, len(data), 23), len(data) - 1]:
        flipped = data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :]
        for broken in (data[:place], flipped, data[:place] + data[place + 1 :], data[:place] + b"\1" + data[place:]):
            whole.write_bytes(broken)
            with pytest.raises(ArtifactError):
                read(whole)


def test_a_zero_put_in_anywhere_is_refused_or_padding(whole):
    data, (meta, sections), padded = whole.read_bytes(), read(whole), 0
    end = len(data) - sizes(whole)["header"] + 5
    for place in [*range(0, len(data), 41), end]:
        whole.write_bytes(data[:place] + b"\0" + data[place:])
        try:
            back_meta, back = read(whole)
        except ArtifactError:
            continue
        padded += 1
        assert back_meta == meta
        assert all(map(same, back, sections))
    assert 1 <= padded <= 2


def test_bytes_in_front_or_behind_are_refused(tiny):
    data = tiny.read_bytes()
    for broken in (data + b"\0", b"\0" + data, data + data, data + bytes(4096)):
        tiny.write_bytes(broken)
        with pytest.raises(ArtifactError):
            read(tiny)


def test_a_file_with_any_byte_changed_and_its_checksums_mended_is_read_or_refused(tiny):
    data = tiny.read_bytes()
    assert mended(data) == data
    for place in range(len(data)):
        for value in (0, 1, 2, 127, 128, 255, data[place] ^ 1):
            tiny.write_bytes(mended(data[:place] + bytes([value]) + data[place + 1 :]))
            read_or_refused(tiny)


def test_a_whole_file_with_bytes_changed_and_its_checksums_mended_is_read_or_refused(whole):
    data, chance = whole.read_bytes(), np.random.default_rng(0)
    understood = 0
    for place in range(0, len(data), 17):
        changed = bytearray(data)
        changed[place] = chance.integers(256)
        whole.write_bytes(mended(bytes(changed)))
        understood += read_or_refused(whole) is not None
    assert understood > 20  # the decoders were reached


@law
@given(st.binary(max_size=60))
def test_any_bytes_behind_the_magic_are_read_or_refused(tmp_path, body):
    (tmp_path / "x.nxt").write_bytes(sealed(b"", body))
    read_or_refused(tmp_path / "x.nxt")


@law
@given(st.binary(max_size=60), st.binary(max_size=20), st.booleans())
def test_any_text_of_an_index_is_read_or_refused(tmp_path, text, streams, bare):
    (tmp_path / "x.nxt").write_bytes(forged(text, streams, coded=not bare))
    read_or_refused(tmp_path / "x.nxt")


@law
@given(st.data())
def test_any_streams_in_a_good_index_are_read_or_refused(tmp_path, data):
    """Each stream of a file is replaced by another one, or by bytes of any kind behind a method."""
    path = tmp_path / "x.nxt"
    write(path, *everything(), plain=True)
    text, streams = taken_apart(path)
    before = [len(stream) for stream in streams]
    number = data.draw(st.integers(0, len(streams) - 1))
    streams[number] = (data.draw(st.sampled_from(streams)) + bytes(before[number]))[: before[number]]
    if data.draw(st.booleans()):
        body = data.draw(st.binary(min_size=before[number], max_size=before[number]))
        streams[number] = bytes([data.draw(st.integers(0, 9))]) + body[1:]
    path.write_bytes(forged(text, b"".join(streams), before))
    sections = read_or_refused(path)
    if sections is not None:
        original = everything()[1]
        wrong = [a.name for a, b in zip(sections, original, strict=True) if not same(a, b)]
        assert len(wrong) <= 1  # the others are untouched
