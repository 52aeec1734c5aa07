"""The reader in C gives what the reader in Python gives: on this machine, on Cortex-M boards, and for damaged files."""

from __future__ import annotations

import random
import subprocess
import zlib
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import specimens
import toolchain
import torch

import enxuto as ex
from enxuto import zoo
from enxuto.artifact import index
from enxuto.artifact.container import MAGIC, VERSION, read, write
from enxuto.artifact.index import DTYPES, blocks, read_index
from enxuto.artifact.sections import Section
from enxuto.coding.bits import read_varint, write_varint
from enxuto.coding.stream import MATCHES, METHODS, VALUES
from enxuto.errors import ArtifactError

SANITIZED = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
HOSTS = {
    "gcc": ("gcc", "-O2"),
    "gcc sanitized": ("gcc", *SANITIZED),
    "clang": ("clang", "-O2"),
    "C++": ("g++", "-x", "c++", "-std=c++17", "-O2"),
}
BOARD = pytest.mark.skipif(not toolchain.has("arm-none-eabi-gcc", "qemu-system-arm"), reason="no compiler or emulator for ARM")
CROSS = pytest.mark.skipif(not toolchain.has("arm-none-eabi-gcc"), reason="no compiler for ARM")
OPTIONAL = ("ADAPTIVE", "TEXT", "CLASSES", "RUNS", "PLANES", "SPARSE", "MESSAGES")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("device")


@pytest.fixture(scope="module")
def written(folder) -> list[Path]:
    """All that a reader may meet, with both kinds of index."""
    found = [folder / "dtypes.nxt", folder / "plain.nxt", folder / "every.nxt", folder / "rare.nxt", folder / "empty.nxt"]
    write(found[0], {"größe": [1, None]}, specimens.dtypes())
    write(found[1], {}, specimens.dtypes(), plain=True)
    streams = specimens.every_method()
    read = set(range(len(METHODS))) - {VALUES, MATCHES}  # which only packed files hold
    assert {stream[0] for _, stream in streams.values()} == read, "a method is missing"
    specimens.forced(found[2], streams)
    specimens.forced(found[3], specimens.rare(), plain=True)
    write(found[4], {}, [])
    return [*found, lenet(folder)]


def lenet(folder: Path) -> Path:
    """A pruned network that shares its weights, as `ex.save` writes it."""
    torch.manual_seed(0)
    model = zoo.LeNet300100()
    task = ex.Task(model, calibration=[torch.rand(64, 1, 28, 28)], evaluate=lambda _: 0.0, seed=0)
    small, _ = ex.run(task, [ex.Prune(0.95, scores="magnitude"), ex.Share(bits=4, biases=8)])
    ex.save(small, folder / "lenet.nxt", original=model)
    return folder / "lenet.nxt"


@pytest.fixture(scope="module")
def tiny(folder) -> dict[str, bytes]:
    """A small file for each method."""
    found = {}
    for name, make in specimens.tiny():
        make(folder / "tiny.nxt")
        found[name] = (folder / "tiny.nxt").read_bytes()
    return found


@pytest.fixture(scope="module")
def host(folder):
    """The reader for this machine, built once for each compiler."""
    built: dict[str, Path] = {}

    def program(name: str) -> Path:
        compiler, *options = HOSTS[name]
        if not toolchain.has(compiler):
            pytest.skip(f"no {compiler}")
        if name not in built:
            built[name] = build_host(compiler, folder / f"host {name}", options)
        return built[name]

    return program


def build_host(compiler: str, out: Path, options: Sequence[str]) -> Path:
    return toolchain.build(compiler, toolchain.HERE / "host.c", out, *options)


def shown(program: Path, kind: str, contents: Sequence[bytes], folder: Path) -> list[str]:
    """What the program tells of these files."""
    bundle = folder / "bundle"
    bundle.write_bytes(b"".join(len(content).to_bytes(4, "little") + content for content in contents))
    done = subprocess.run([program, kind, bundle], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout.splitlines()


def compare(lines: Sequence[str], paths: Sequence[Path]) -> int:
    """Every name, shape and byte is that of the reader in Python; gives the number of elements that were compared."""
    at = elements = 0
    for path in paths:
        for section in read(path)[1]:
            word, *rest = lines[at].split(" ")
            assert word == "tensor", f"{path.name}, before {section.name}: {lines[at][:200]}"
            told = dict(zip(toolchain.TENSOR, map(int, rest), strict=False))
            axes = tuple(map(int, rest[8 : 8 + told["ndim"]]))
            assert (DTYPES[told["dtype"]], told["symbols"] or None, axes) == (section.dtype, section.symbols, section.shape)
            name, data = " ".join(rest[8 + told["ndim"] :]).rsplit(" ", 1)
            assert name == section.name
            assert data == section.array.tobytes().hex(), f"{path.name}: {name} differs"
            elements, at = elements + section.array.size, at + 1
        assert lines[at].split()[:2] == ["file", "0"], f"{path.name}: {lines[at]}"
        at += 1
    assert at == len(lines)
    return elements


@pytest.mark.parametrize("name", HOSTS)
def test_every_value_is_right_on_this_machine(host, written, folder, name):
    lines = shown(host(name), "whole", [path.read_bytes() for path in written], folder)
    assert compare(lines, written) > 250_000


@BOARD
@pytest.mark.parametrize("cpu", toolchain.BOARDS)
def test_every_value_is_right_on_a_board(written, folder, cpu):
    program = toolchain.build_board(cpu, written, folder)
    lines = toolchain.run_board(cpu, program).splitlines()
    assert compare(lines, written) > 250_000
    tensors = [line.split() for line in lines if line.startswith("tensor")]
    assert max(int(words[5]) for words in tensors) < 1024, "the stack has grown"


def test_a_tensor_of_several_streams_is_read(host, folder):
    rows = np.zeros((3, 1_500_000), np.uint8)
    rows.reshape(-1)[specimens.scattered(20_000) % rows.size] = 5
    rows[2] += specimens.scattered(1_500_000).astype(np.uint8) & 1
    path = folder / "large.nxt"
    flat = np.where(np.arange(4_194_305) % 4096 == 1, np.float32(0.5), np.float32(0))
    write(
        path,
        {},
        [
            specimens.coded("rows", rows, 8),
            specimens.plain("flat", flat),
            specimens.plain("one", np.ones((5_000_000, 1), np.bool_)),
        ],
    )
    expected = verdict(path.read_bytes(), folder)
    assert shown(host("gcc"), "brief", [path.read_bytes()], folder) == [expected]
    assert expected.startswith("file 0 ")


@CROSS
def test_methods_can_be_left_out(folder):
    for cpu in ("cortex-m0plus", "cortex-m7"):
        everything, least = toolchain.code_bytes(cpu, folder), toolchain.code_bytes(cpu, folder, *OPTIONAL)
        print(f"\n{cpu}: {everything[0]} bytes of code and {everything[1]} of constants; at least {least[0]} and {least[1]}")
        assert sum(everything) < 12_500
        assert sum(least) < sum(everything) / 2
    for name in OPTIONAL:
        assert sum(toolchain.code_bytes("cortex-m7", folder, name)) < sum(everything)


@pytest.mark.skipif(not toolchain.has("gcc"), reason="no gcc")
@pytest.mark.parametrize("name", OPTIONAL[:-1])
def test_what_was_left_out_is_refused_by_name(tiny, folder, name):
    program = build_host("gcc", folder / f"without {name}", ["-O0", f"-DNXT_NO_{name}"])
    for method, line in zip(tiny, shown(program, "brief", list(tiny.values()), folder), strict=True):
        if method == name.lower() or (method, name) == ("coded index", "TEXT"):
            assert line.split()[1] == "-7", method
        elif method not in ("planes", "sparse", "plain index", "coded index"):  # whose streams may be of any method
            assert line.split()[1] == "0", method


def told(meta: bytes, sections: Sequence[Section]) -> int:
    check = zlib.crc32(meta)
    for section in sections:
        numbers = (DTYPES.index(section.dtype), section.symbols or 0, *section.shape)
        head = section.name.encode() + b"\0" + b"".join((number & 0xFFFFFFFF).to_bytes(4, "little") for number in numbers)
        check = zlib.crc32(section.array.tobytes(), zlib.crc32(head, check))
    return check


def verdict(data: bytes, folder: Path) -> str | None:
    """The line that the reader in C should give, its reason for a refusal left out; None where only the meta is no JSON."""
    metas: list[bytes] = []
    failed: list[bytes] = []
    parse = index._meta

    def seen(text: bytes) -> dict:
        metas.append(bytes(text))
        try:
            return parse(text)
        except ArtifactError:
            failed.append(text)
            return {}

    path = folder / "attack.nxt"
    path.write_bytes(data)
    with mock.patch.object(index, "_meta", seen):
        try:
            _, sections = read(path)
        except (ArtifactError, IndexError):  # IndexError: a file whose streams are all of no bytes has no block
            return "refused"
    check = told(metas[0], sections)
    return None if failed else f"file 0 {check}"


def mended(body: bytes, text: bytes) -> bytes:
    """A file of these streams and this index with all checksums right, where it is clear what they cover."""
    start, sums = MAGIC + bytes([VERSION]), b""
    try:
        _, _, lengths, behind = read_index(text)
        text, at = text[:behind], 0
        for first, last in blocks(lengths):
            size = sum(lengths[first:last])
            sums += zlib.crc32(body[at : at + size]).to_bytes(4, "little")
            at += size
    except ArtifactError:
        sums = bytes(4)
    tail = text + sums
    tail += write_varint(len(tail))[::-1]
    return start + body + tail + zlib.crc32(tail, zlib.crc32(start)).to_bytes(4, "little")


def taken_apart(data: bytes) -> tuple[bytes, bytes]:
    """Streams and index of a good file."""
    length, used = read_varint(data[-13:-4][::-1], 0)
    tail = data[len(data) - 4 - used - length : len(data) - 4 - used]
    _, _, _, behind = read_index(tail)
    return data[5 : len(data) - 4 - used - length], tail[:behind]


def flipped(data: bytes) -> list[bytes]:
    return [data[:k] + bytes([data[k] ^ 1 << bit]) + data[k + 1 :] for k in range(len(data)) for bit in range(8)]


def mutated(data: bytes, number: int, chance: random.Random) -> list[bytes]:
    found = []
    for _ in range(number):
        changed = bytearray(data)
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(changed) + 1)
            kind = chance.randrange(4)
            if kind == 0:
                changed[at:at] = bytes([chance.choice([0, 1, 127, 128, 255, chance.randrange(256)])])
            elif kind == 1:
                del changed[at : at + chance.randint(1, 4)]
            else:
                changed[at : at + 1] = bytes([chance.choice([0, 1, 2, 127, 128, 255, chance.randrange(256)])])
        found.append(bytes(changed))
    return found


def attacks(data: bytes, chance: random.Random) -> list[bytes]:
    """Changes with checksums that are right."""
    body, text = taken_apart(data)
    found = [mended(each, text) for each in flipped(body) + mutated(body, 100, chance)]
    found += [mended(body, each) for each in flipped(text) + mutated(text, 150, chance)]
    return found + [mended(body[:size], text) for size in range(len(body))]


@pytest.mark.parametrize("method", [name for name, _ in specimens.tiny()])
def test_damaged_files_are_refused_as_in_python(host, tiny, folder, method):
    """Never a step outside the file, the output or the scratch; and both readers take and refuse the same."""
    data = tiny[method]
    cut_or_flipped = [data[:size] for size in range(len(data))] + flipped(data) + [data + b"\0"]
    lines = shown(host("gcc sanitized"), "brief", cut_or_flipped, folder)
    assert {line.split()[1] for line in lines} <= {"-1", "-2", "-3"}, "a checksum sees every single bit"
    cases = attacks(data, random.Random(method))
    lines = shown(host("gcc sanitized"), "brief", cases, folder)
    taken = 0
    for case, line in zip(cases, lines, strict=True):
        expected = verdict(case, folder)
        if expected is None:
            continue
        if expected == "refused":
            assert int(line.split()[1]) in (-1, -2, -3), (line, case.hex())
        else:
            assert line == expected, case.hex()
            taken += 1
    print(f"\n{method}: {len(cut_or_flipped)} cuts and flips, {len(cases)} with mended checksums, {taken} taken by both")
    assert taken < len(cases)


@BOARD
def test_a_board_refuses_the_same(host, tiny, folder):
    """With lengths of 32 bits: what this machine says of changes with mended checksums, the board says too."""
    cases = [case for name in tiny if name != "coded index" for case in attacks(tiny[name], random.Random(name))[::5]]
    paths = []
    for number, case in enumerate(cases):
        paths.append(folder / f"{number}.attack")
        paths[-1].write_bytes(case)
    program = toolchain.build_board("cortex-m3", paths, folder, "-DWHOLE=0")
    lines = toolchain.run_board("cortex-m3", program).splitlines()
    too_large = 0
    for here, there, case in zip(shown(host("gcc"), "brief", cases, folder), lines, cases, strict=True):
        mine, theirs = (tuple(map(int, line.split()[1:])) for line in (here, there))
        too_large += theirs[0] in (-101, -105)  # it has no megabyte for one tensor
        if theirs[0] not in (-101, -105) and mine[0] == 0:
            assert (theirs[0], theirs[1] % (1 << 32)) == mine, case.hex()
        elif theirs[0] not in (-101, -105):
            assert theirs[0] == mine[0], case.hex()
    assert too_large < len(cases) / 20
