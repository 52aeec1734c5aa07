"""Batches and accuracy: every sample once an epoch, the same order for the same seed, one value per sample."""

import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from enxuto import data
from enxuto.errors import RangeError, ShapeError


def numbered(count: int, side: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    y = torch.arange(count)
    return y.float().view(-1, 1, 1, 1).expand(count, 1, side, side).clone(), y


def epoch(batches: data.Batches) -> list[int]:
    return [int(label) for _, y in batches for label in y]


@given(count=st.integers(1, 60), batch_size=st.integers(1, 70), seed=st.integers(0, 2**32))
def test_an_epoch_holds_whole_batches_of_different_samples_with_their_labels(count, batch_size, seed):
    batches = data.batches(*numbered(count), batch_size, seed)
    found = list(batches)
    size = min(batch_size, count)
    assert len(found) == len(batches) == count // size
    assert all(len(x) == len(y) == size and torch.equal(x.flatten(), y.float()) for x, y in found)
    labels = [int(label) for _, y in found for label in y]
    assert len(set(labels)) == len(labels) == count // size * size


def test_each_epoch_has_its_own_order_and_the_same_seed_repeats_them_all():
    first, again, other = (data.batches(*numbered(40), 8, seed) for seed in (1, 1, 2))
    epochs = [epoch(first) for _ in range(3)]
    assert len({tuple(order) for order in epochs}) == 3
    assert [epoch(again) for _ in range(3)] == epochs
    assert epoch(other) != epochs[0]
    assert [int(label) for _, y in first.epoch(1) for label in y] == epochs[1]


def test_shift_and_flip_only_move_and_mirror_and_repeat_with_the_seed():
    x = torch.zeros(64, 2, 7, 9)
    x[:, :, 3, 4] = torch.arange(1.0, 129.0).view(64, 2)
    moved = torch.cat([batch for batch, _ in data.batches(x, torch.arange(64), 16, 3, shift=2, flip=True)])
    again = torch.cat([batch for batch, _ in data.batches(x, torch.arange(64), 16, 3, shift=2, flip=True)])
    assert torch.equal(moved, again)
    places = moved[:, 0].nonzero()
    assert len(places) == 64
    assert set(places[:, 1].tolist()) == {1, 2, 3, 4, 5}
    assert set(places[:, 2].tolist()) == {2, 3, 4, 5, 6}
    assert torch.equal(moved[:, 0].nonzero(), moved[:, 1].nonzero())


def test_flip_alone_gives_an_image_or_its_mirror_image():
    x = torch.randn(200, 1, 4, 6)
    mirrored = 0
    for batch, y in data.batches(x, torch.arange(200), 50, flip=True):
        for image, label in zip(batch, y, strict=True):
            same, mirror = torch.equal(image, x[label]), torch.equal(image, x[label].flip(-1))
            assert same != mirror
            mirrored += mirror
    assert 70 < mirrored < 130


def test_shift_alone_never_mirrors():
    x = torch.arange(6.0).expand(100, 1, 4, 6).clone()
    for batch, _ in data.batches(x, torch.arange(100), 50, shift=1):
        assert (batch.diff(dim=-1) >= 0).all()


def test_inputs_are_all_samples_in_their_order():
    x, _ = numbered(10)
    cut = data.inputs(x, 4)
    assert [len(batch) for batch in cut] == [4, 4, 2]
    assert torch.equal(torch.cat(cut), x)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_size_below_one_is_refused(batch_size):
    x, y = numbered(4)
    for make in (lambda: data.batches(x, y, batch_size), lambda: data.inputs(x, batch_size)):
        with pytest.raises(RangeError, match=f"batch_size={batch_size}"):
            make()
    with pytest.raises(RangeError, match=f"batch_size={batch_size}"):
        data.accuracy(x, y, batch_size)


def test_lengths_that_differ_and_shifts_that_do_not_fit_are_refused():
    x, y = numbered(4, side=3)
    with pytest.raises(ShapeError, match="4 samples and y 3"):
        data.batches(x, y[:3])
    with pytest.raises(ShapeError, match="4 samples and y 3"):
        data.accuracy(x, y[:3])
    with pytest.raises(RangeError, match="shift=3"):
        data.batches(x, y, shift=3)


class Fixed(nn.Module):
    """Says class 1 for positive inputs, and NaN scores as soon as it is not in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert not self.training
        assert not torch.is_grad_enabled()
        score = self.norm(x).flatten(1)[:, :1]
        return torch.cat([-score, score], dim=1)


def test_accuracy_gives_one_value_per_sample_and_leaves_the_model_as_it_was():
    x = torch.tensor([1.0, -1.0, 2.0, -2.0, 3.0]).view(5, 1, 1, 1)
    y = torch.tensor([1, 1, 1, 0, 0])
    model = Fixed().train()
    evaluate = data.accuracy(x, y, batch_size=2)
    assert evaluate(model).tolist() == [1, 0, 1, 1, 0]
    assert model.training
    assert pickle.loads(pickle.dumps(evaluate))(model).tolist() == [1, 0, 1, 1, 0]


def test_accuracy_refuses_outputs_that_are_no_scores():
    x, y = numbered(4)
    with pytest.raises(ShapeError, match=r"outputs \(4, 1, 1, 1\) for 4 samples"):
        data.accuracy(x, y)(nn.Identity())
