"""Data sets as tensors in memory, cut into training, validation and test. Batches are made next door, in batches.py."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from enxuto.data.idx import read_idx
from enxuto.errors import DataError

SOURCES = ("auto", "fashion-mnist", "digits")
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # where Debian's dataset-fashion-mnist puts it
_VALIDATION_PART = 6  # of the training files: a drop of half a point is within chance on half as many samples
_DIGITS_TEST, _DIGITS_VALIDATION = 400, 200  # of 1,797
_DIGITS_TEST_SEED = 1797  # the test never depends on the seed of the caller


@dataclass(frozen=True, eq=False, kw_only=True)
class Dataset:
    """Images normalised by mean and deviation of the training split, and their classes.

    Shapes: x float32 [samples, channels, height, width], y int64 [samples] with values 0 ... classes - 1.
    """

    name: str
    classes: int
    train_x: Tensor
    train_y: Tensor
    validation_x: Tensor
    validation_y: Tensor
    test_x: Tensor
    test_y: Tensor
    mean: float
    deviation: float

    @property
    def in_channels(self) -> int:
        """Channels of an image: 1 for grey."""
        return self.train_x.shape[1]

    @property
    def image_size(self) -> int:
        """Width of an image in pixels."""
        return self.train_x.shape[-1]


def load(source: str | Path = "auto", seed: int = 0) -> Dataset:
    """The data set of that name, or in that folder of idx files (gzipped or not; MNIST and its relatives).

    "auto" is "fashion-mnist" where Debian's package is installed, else "digits" of scikit-learn, which always works.
    Validation is cut from the training data with `seed`; the test is always the same.
    Raises: DataError when the source is no such name or folder, or a file in it is missing, damaged or contradictory.
    """
    if source == "auto":
        source = "fashion-mnist" if _idx_file(FASHION_MNIST, "train-images-idx3-ubyte") else "digits"
    if source == "digits":
        return _digits(seed)
    if source == "fashion-mnist":
        if not FASHION_MNIST.is_dir():
            raise DataError(
                f"source 'fashion-mnist' is not in '{FASHION_MNIST}'; install Debian's dataset-fashion-mnist, "
                "name a folder of its idx files, or use 'digits'."
            )
        return _idx_folder(FASHION_MNIST, seed)
    return _idx_folder(Path(source), seed)


def _digits(seed: int) -> Dataset:
    """The 1,797 digits of 8 x 8 pixels that come with scikit-learn."""
    from sklearn.datasets import load_digits  # takes a second to import, and only this function needs it

    bunch = load_digits()
    order = np.random.default_rng(_DIGITS_TEST_SEED).permutation(len(bunch.target))
    x, y = bunch.images[order], bunch.target[order].astype(np.uint8)
    test, rest = slice(_DIGITS_TEST), slice(_DIGITS_TEST, None)
    return _split("digits", (x[rest], y[rest]), (x[test], y[test]), validation=_DIGITS_VALIDATION, seed=seed)


def _idx_folder(folder: Path, seed: int) -> Dataset:
    """The data set in a folder of the four idx files of the MNIST family."""
    if not folder.is_dir():
        raise DataError(f"source '{folder}' is neither a folder nor one of {', '.join(SOURCES)}; name one of these.")
    train, test = _idx_pair(folder, "train"), _idx_pair(folder, "t10k")
    if train[0].shape[1:] != test[0].shape[1:]:
        shapes = f"{train[0].shape[1:]} and {test[0].shape[1:]}"
        raise DataError(f"'{folder}' holds images of {shapes} pixels to train and to test; they must have one size.")
    if test[1].max() > train[1].max():
        raise DataError(f"'{folder}' tests class {test[1].max()}, which is not among its training labels; fetch it again.")
    validation = len(train[0]) // _VALIDATION_PART
    if not validation:
        raise DataError(
            f"'{folder}' holds {len(train[0])} training images, too few to set some aside for validation; "
            f"at least {_VALIDATION_PART} are needed."
        )
    return _split(folder.resolve().name, train, test, validation=validation, seed=seed)


def _idx_pair(folder: Path, part: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The images [samples, height, width] and labels [samples] of "train" or "t10k"."""
    names = (f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte")
    files = [_idx_file(folder, name) for name in names]
    for name, file in zip(names, files, strict=True):
        if file is None:
            raise DataError(f"'{folder}' has no '{name}' (or '{name}.gz'); a folder of the four MNIST idx files is needed.")
    images, labels = (read_idx(file, dimensions=d) for file, d in zip(files, (3, 1), strict=True) if file)
    if len(images) != len(labels):
        raise DataError(f"'{folder}' holds {len(images)} {part} images but {len(labels)} labels; fetch both again.")
    return images, labels


def _idx_file(folder: Path, name: str) -> Path | None:
    """The file of that name in the folder, gzipped or not; some archives write ".idx" instead of "-idx"."""
    stem, dash, suffix = name.partition("-idx")
    for candidate in (name, f"{stem}.{dash[1:]}{suffix}"):
        for path in (folder / candidate, folder / f"{candidate}.gz"):
            if path.is_file():
                return path
    return None


def _split(
    name: str,
    train: tuple[NDArray[np.generic], NDArray[np.uint8]],
    test: tuple[NDArray[np.generic], NDArray[np.uint8]],
    *,
    validation: int,
    seed: int,
) -> Dataset:
    """Sets `validation` of the training samples aside, chosen by the seed, and normalises by what is left."""
    images, labels = _tensors(*train)
    test_x, test_y = _tensors(*test)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(images)))
    aside, left = order[:validation].sort().values, order[validation:].sort().values
    train_x = images[left]
    deviation, mean = (float(value) for value in torch.std_mean(train_x))
    if not deviation > 0:
        raise DataError(f"all pixels of the training images of '{name}' are equal; fetch the data set again.")
    return Dataset(
        name=name,
        classes=int(labels.max()) + 1,
        train_x=train_x.sub_(mean).div_(deviation),
        train_y=labels[left],
        validation_x=images[aside].sub_(mean).div_(deviation),
        validation_y=labels[aside],
        test_x=test_x.sub_(mean).div_(deviation),
        test_y=test_y,
        mean=mean,
        deviation=deviation,
    )


def _tensors(images: NDArray[np.generic], labels: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
    """Images as float32 [samples, 1, height, width], labels as int64 [samples]."""
    x = torch.from_numpy(images.astype(np.float32)).unsqueeze(1)
    return x, torch.from_numpy(labels.astype(np.int64))
