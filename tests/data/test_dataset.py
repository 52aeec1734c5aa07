"""Loading data: idx folders good and hostile, splits that never share a sample, digits and Fashion-MNIST themselves."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from enxuto import data
from enxuto.data.dataset import FASHION_MNIST
from enxuto.data.idx import read_idx
from enxuto.errors import DataError

TRAIN_X, TRAIN_Y = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_X, TEST_Y = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


def idx(array: np.ndarray) -> bytes:
    shape = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes([0, 0, 8, array.ndim]) + shape + array.astype(np.uint8).tobytes()


def images(first: int, count: int) -> np.ndarray:
    """Images of 4 x 5 pixels that carry their own number in the first two."""
    numbers = np.arange(first, first + count)
    pixels = np.zeros((count, 4, 5), np.uint8)
    pixels[:, 0, 0], pixels[:, 0, 1] = numbers // 200, numbers % 200
    return pixels


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files = {TRAIN_X: images(0, 360), TRAIN_Y: np.arange(360) % 3, TEST_X: images(360, 60), TEST_Y: np.arange(60) % 3}
    for name, array in files.items():
        (tmp_path / name).write_bytes(idx(array))
    return tmp_path


def numbers(dataset: data.Dataset, x: torch.Tensor) -> list[int]:
    pixels = (x * dataset.deviation + dataset.mean).round().long()[:, 0, 0]
    return (pixels[:, 0] * 200 + pixels[:, 1]).tolist()


def test_an_idx_folder_is_split_without_losing_or_sharing_a_sample(folder):
    dataset = data.load(folder)
    train = numbers(dataset, dataset.train_x)
    validation = numbers(dataset, dataset.validation_x)
    assert len(validation) == 60
    assert sorted(train + validation) == list(range(360))
    assert numbers(dataset, dataset.test_x) == list(range(360, 420))
    assert dataset.train_y.tolist() == [number % 3 for number in train]
    assert dataset.validation_y.tolist() == [number % 3 for number in validation]
    assert (dataset.name, dataset.classes, dataset.image_size, dataset.in_channels) == (folder.name, 3, 5, 1)


def test_the_seed_moves_the_validation_split_and_never_the_test(folder):
    first, same, other = data.load(folder), data.load(folder, seed=0), data.load(folder, seed=1)
    assert torch.equal(first.validation_x, same.validation_x)
    assert numbers(first, first.validation_x) != numbers(other, other.validation_x)
    assert numbers(first, first.test_x) == numbers(other, other.test_x)


def test_images_are_normalised_by_the_training_split_alone(folder):
    dataset = data.load(folder)
    assert dataset.train_x.dtype == torch.float32
    assert dataset.train_x.mean().abs() < 1e-5
    assert dataset.train_x.std() == pytest.approx(1, abs=1e-5)
    assert dataset.test_x.mean().abs() > 0.01


def test_gzipped_files_and_dotted_names_give_the_same_data(folder):
    plain = data.load(folder)
    (folder / TRAIN_X).with_suffix(".gz").write_bytes(gzip.compress((folder / TRAIN_X).read_bytes()))
    (folder / TRAIN_X).unlink()
    (folder / TEST_Y).rename(folder / "t10k-labels.idx1-ubyte")
    packed = data.load(str(folder))
    assert torch.equal(plain.train_x, packed.train_x)
    assert torch.equal(plain.test_y, packed.test_y)


def test_a_folder_that_is_none_or_lacks_a_file_is_refused_with_what_would_work(folder, tmp_path):
    with pytest.raises(DataError, match=r"'nowhere' is neither a folder nor one of auto, fashion-mnist, digits; name"):
        data.load("nowhere")
    (folder / TEST_X).unlink()
    with pytest.raises(DataError, match=rf"has no '{TEST_X}' .*; a folder of the four"):
        data.load(folder)


GOOD = idx(images(0, 360))
ATTACKS = {
    "nothing at all": (b"", "starts with nothing"),
    "ends in the magic number": (GOOD[:3], "starts with 000008"),
    "ends in the header": (GOOD[:11], "ends inside its header after 11 of 16"),
    "ends in the pixels": (GOOD[:-1], r"holds less than the 7200 bytes"),
    "ends before the pixels": (GOOD[:16], "holds less"),
    "goes on too long": (GOOD + b"\0", "holds more than the 7200 bytes"),
    "floats": (b"\0\0\x0d\3" + GOOD[4:], "starts with 00000d03, not 00000803"),
    "labels in place of images": (idx(np.arange(360) % 3), "starts with 00000801"),
    "foreign": (b"\x89PNG\r\n\x1a\n" * 50, "starts with 89504e47"),
    "no images": (GOOD[:4] + struct.pack(">3I", 0, 4, 5), "says it holds"),
    "images without pixels": (GOOD[:4] + struct.pack(">3I", 360, 0, 5), "says it holds"),
    "a lie of 2**96 bytes": (GOOD[:4] + b"\xff" * 12 + GOOD[16:], "between 1 and 2147483648 bytes"),
    "a lie of 2**31 bytes": (GOOD[:4] + struct.pack(">3I", 2**11, 2**10, 2**10) + GOOD[16:], "holds less"),
}


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_hostile_idx_file_is_refused(folder, attack, packed):
    content, message = ATTACKS[attack]
    (folder / TRAIN_X).unlink()
    path = folder / (f"{TRAIN_X}.gz" if packed else TRAIN_X)
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(DataError, match=message) as caught:
        data.load(folder)
    assert path.name in str(caught.value)


@pytest.mark.parametrize("damage", ["truncated", "bit", "not gzip"])
def test_a_damaged_gzip_file_is_refused(folder, damage):
    whole = gzip.compress(GOOD)
    flipped = bytearray(whole)
    flipped[-6] ^= 1  # in the checksum
    content = {"truncated": whole[:-20], "bit": bytes(flipped), "not gzip": GOOD}[damage]
    (folder / TRAIN_X).unlink()
    (folder / f"{TRAIN_X}.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"cannot be read: .*; it is truncated or damaged"):
        data.load(folder)


def test_a_gzip_bomb_is_not_unpacked(tmp_path, monkeypatch):
    bomb = tmp_path / "bomb.gz"
    bomb.write_bytes(gzip.compress(GOOD + bytes(50_000_000)))
    read = []
    real = gzip.GzipFile.read
    monkeypatch.setattr(gzip.GzipFile, "read", lambda self, size=-1: read.append(size) or real(self, size))
    with pytest.raises(DataError, match="holds more than the 7200"):
        read_idx(bomb, dimensions=3)
    assert sum(read) < 10_000
    assert min(read) > 0


def test_counts_that_contradict_each_other_are_refused(folder):
    def load_with(name: str, array: np.ndarray) -> None:
        kept = (folder / name).read_bytes()
        (folder / name).write_bytes(idx(array))
        try:
            data.load(folder)
        finally:
            (folder / name).write_bytes(kept)

    with pytest.raises(DataError, match="360 train images but 359 labels"):
        load_with(TRAIN_Y, np.arange(359) % 3)
    with pytest.raises(DataError, match="60 t10k images but 61 labels"):
        load_with(TEST_Y, np.arange(61) % 3)
    with pytest.raises(DataError, match=r"\(4, 5\) and \(5, 4\) pixels"):
        load_with(TEST_X, images(0, 60).reshape(60, 5, 4))
    with pytest.raises(DataError, match="tests class 9"):
        load_with(TEST_Y, np.full(60, 9))
    with pytest.raises(DataError, match="all pixels"):
        load_with(TRAIN_X, np.zeros((360, 4, 5)))


def test_too_few_images_for_a_validation_split_are_refused(folder):
    (folder / TRAIN_X).write_bytes(idx(images(0, 5)))
    (folder / TRAIN_Y).write_bytes(idx(np.arange(5) % 3))
    with pytest.raises(DataError, match=r"5 training images, too few .* at least 6"):
        data.load(folder)


def test_digits_load_anywhere_and_share_no_sample():
    dataset = data.load("digits")
    parts = [dataset.train_x, dataset.validation_x, dataset.test_x]
    assert [len(part) for part in parts] == [1197, 200, 400]
    assert (dataset.name, dataset.classes, dataset.train_x.shape[1:]) == ("digits", 10, (1, 8, 8))
    together = torch.cat(parts).flatten(1) * dataset.deviation + dataset.mean
    assert len(together.round().unique(dim=0)) == 1797
    assert torch.equal(dataset.test_y, data.load("digits", seed=5).test_y)
    assert not torch.equal(dataset.train_y, data.load("digits", seed=5).train_y)


def test_auto_falls_back_on_digits(monkeypatch, tmp_path):
    monkeypatch.setattr("enxuto.data.dataset.FASHION_MNIST", tmp_path / "nowhere")
    assert data.load().name == "digits"
    with pytest.raises(DataError, match="install Debian's dataset-fashion-mnist"):
        data.load("fashion-mnist")


@pytest.mark.skipif(not FASHION_MNIST.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_fashion_mnist_loads_whole_where_it_is_installed():
    dataset = data.load()
    assert dataset.name == "fashion-mnist"
    assert dataset.train_x.shape == (50_000, 1, 28, 28)
    assert (len(dataset.validation_y), len(dataset.test_y)) == (10_000, 10_000)
    assert dataset.test_y.bincount().tolist() == [1_000] * 10
    assert (dataset.train_y.bincount() + dataset.validation_y.bincount()).tolist() == [6_000] * 10
