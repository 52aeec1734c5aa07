"""What a batch is: its samples, however deep its tensors lie, are found, cut, repeated and counted the same everywhere."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, UserDict, namedtuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence, unpack_sequence

import enxuto as ex
from enxuto.batches import arguments, batch_size, leaves, mapped, parts, resized, rows, samples
from enxuto.errors import ShapeError, TaskError
from enxuto.evidence.samples import small_batch
from enxuto.macs import count_macs, total_macs

Pair = namedtuple("Pair", "left right")
COLUMN = torch.arange(12.0).view(6, 2)
TABLE = torch.ones(5)
BATCHES = [
    COLUMN,
    (COLUMN, TABLE, 3),
    ([COLUMN, COLUMN + 1],),
    {"x": COLUMN, "scale": torch.tensor(2.0), "table": TABLE},
    ({"x": [(COLUMN,)], "mode": "mean"}, TABLE),
    OrderedDict(x=Pair(COLUMN, None)),
    UserDict(x=COLUMN, table=TABLE),
]


@pytest.mark.parametrize("batch", BATCHES)
def test_samples_are_cut_wherever_they_lie_and_nothing_else_is(batch):
    assert batch_size(batch) == samples(batch) == 6
    cut = rows(batch, 1, 3)
    assert type(cut) is type(batch)
    for before, after in zip(leaves(batch), leaves(cut), strict=True):
        assert torch.equal(after, before[1:3] if before.ndim and len(before) == 6 else before)
    assert [samples(part) for part in parts(batch, 4)] == [1, 2, 1, 2]
    assert parts(batch, 1)[0] is batch
    assert len(parts(batch, 99)) == 6
    for size in (1, 6, 8):
        again = list(leaves(resized(batch, size)))
        for before, after in zip(leaves(batch), again, strict=True):
            assert torch.equal(after, before[torch.arange(size) % 6] if before.ndim and len(before) == 6 else before)


def test_a_batch_keeps_its_classes():
    cut = rows((Pair(COLUMN, [TABLE]),), 0, 1)
    assert isinstance(cut[0], Pair)
    assert isinstance(cut[0].right, list)
    assert isinstance(rows({"x": UserDict(x=COLUMN)}, 0, 1)["x"], UserDict)


def test_the_calls_that_batches_stand_for():
    assert arguments(COLUMN) == ((COLUMN,), {})
    assert arguments([COLUMN, 2]) == ((COLUMN, 2), {})
    assert arguments({"x": COLUMN}) == ((), {"x": COLUMN})
    packed = pack_sequence([COLUMN, COLUMN[:2]])
    assert arguments(packed)[0][0] is packed


def test_packed_sequences_hold_as_many_samples_as_were_packed():
    sequences = [torch.randn(length, 3) for length in (2, 5, 4)]
    packed = pack_sequence(sequences, enforce_sorted=False)
    assert batch_size((packed,)) == 3
    (cut,) = rows((packed,), 1, 3)
    assert all(map(torch.equal, unpack_sequence(cut), sequences[1:]))
    (more,) = resized((packed,), 5)
    assert all(map(torch.equal, unpack_sequence(more), [*sequences, *sequences[:2]]))
    wide = mapped(packed, torch.Tensor.double)
    assert isinstance(wide, PackedSequence)
    assert wide.data.dtype == torch.float64
    assert total_macs(nn.LSTM(3, 2), (pack_sequence([torch.randn(4, 3)] * 3),)) == 4 * 4 * 2 * (3 + 2)


def test_a_batch_without_samples_says_so():
    assert batch_size({"scale": torch.tensor(2.0)}) == 0
    with pytest.raises(TaskError, match="no tensor with a batch dimension"):
        resized((torch.tensor(2.0), 3), 2)
    with pytest.raises(ShapeError, match="batch_size=0"):
        resized(COLUMN, 0)


class Nested(nn.Module):
    """Takes one argument, which holds the tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(10, 16), nn.Linear(16, 4)

    def forward(self, given: list[Tensor]) -> Tensor:
        return self.two(torch.relu(self.one(given[0] + given[1])))


def test_multiply_accumulates_are_those_of_one_sample_of_a_nested_batch():
    batch = ([torch.randn(32, 10), torch.randn(32, 10)],)
    task = ex.Task(Nested(), calibration=[batch])
    assert total_macs(task.model, batch) == 10 * 16 + 16 * 4
    assert batch_size(small_batch(task.model, batch)) == 2
    smaller, record = ex.PruneChannels(macs=0.5)(task.model, task)
    assert record.figures["macs_before"] == 224
    assert record.figures["macs_after"] == total_macs(smaller, batch) <= 112


@dataclasses.dataclass
class Given:
    """What a collate function of a user's gives."""

    x: Tensor
    note: str = ""


class Unpacking(nn.Module):
    """Attention and a recurrent layer behind whatever its one argument wraps the tensor in."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.rnn = nn.Linear(5, 3), nn.GRU(3, 4, batch_first=True)
        self.attention, self.conv = nn.MultiheadAttention(4, 2, batch_first=True), nn.Conv1d(4, 2, 3)

    def forward(self, given: object) -> Tensor:
        x = next(leaves(given))
        x = self.rnn(self.fc(x))[0]
        return self.conv(self.attention(x, x, x)[0].transpose(1, 2))


@pytest.mark.parametrize("wrap", [
    lambda x: (Given(x),), lambda x: [Given(x, "note")], lambda x: ({"x": x},), lambda x: ({"deep": [(x, None)]},),
    lambda x: {"given": Given(x)}, lambda x: {"given": {"deep": Given(x)}}, lambda x: (Pair(Given(x), 3),),
])  # fmt: skip
def test_multiply_accumulates_do_not_depend_on_what_a_batch_is_wrapped_in(wrap):
    model, x = Unpacking().eval(), torch.randn(6, 7, 5)
    expected = {"fc": 7 * 15, "rnn": 7 * 3 * 4 * (3 + 4), "attention": 7 * 4 * 16 + 2 * 7 * 7 * 4, "conv": 5 * 2 * 4 * 3}
    assert count_macs(model, x) == count_macs(model, x[:1]) == expected
    assert count_macs(model, wrap(x)) == expected
    assert batch_size(wrap(x)) == 6
    assert [batch_size(part) for part in parts(wrap(x), 2)] == [3, 3]


def test_a_file_of_a_fixed_batch_takes_more_and_fewer_nested_samples(tmp_path):
    from enxuto.evaluation.onnxmodel import OnnxModel
    from enxuto.exporters.onnx import to_onnx

    model = Nested().eval()
    to_onnx(model, ([torch.randn(4, 10), torch.randn(4, 10)],), tmp_path / "m.onnx", dynamic_batch=False)
    file = OnnxModel(tmp_path / "m.onnx", threads=1)
    for size in (1, 4, 7):
        given = [torch.randn(size, 10), torch.randn(size, 10)]
        assert torch.allclose(file(given), model(given), atol=1e-5)


def test_all_of_a_packed_sequence_goes_to_another_device():
    moved = mapped(pack_sequence([torch.randn(2, 3), torch.randn(5, 3)], enforce_sorted=False), lambda it: it.to("meta"))
    assert {part.device.type for part in (moved.data, moved.sorted_indices, moved.unsorted_indices)} == {"meta"}
    assert moved.batch_sizes.device.type == "cpu"
