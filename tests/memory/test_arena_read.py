"""What is read from a model: by arithmetic where it is known, against hooks, and one test for each way tensors share memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import enxuto as ex
from enxuto import zoo
from enxuto.errors import ExportError, RangeError
from enxuto.memory import Flow, better_order, lay_out, read_flow
from enxuto.memory.flow import blocks, live_bytes, peak_bytes
from enxuto.memory.read import flow_of
from enxuto.task import Task
from toys import Block as TransformerBlock
from toys import Mlp, ResidualCnn, Tied, inputs, photograph, seeded, unchanged

IMAGES = torch.zeros(2, 1, 28, 28)


class Does(nn.Module):
    """A network that is one function."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *x: Tensor) -> Tensor:
        return self.function(*x)


def sizes(flow: Flow) -> list[int]:
    return [block.size_bytes for block in blocks(flow)]


def flow_through(function, *x: Tensor) -> Flow:
    return read_flow(Does(function), x)


@pytest.mark.parametrize("bits", [32, 8])
@pytest.mark.parametrize("name", zoo.NAMES)
def test_the_arena_of_every_network_of_the_zoo_is_within_a_tenth_of_the_bound(name, bits):
    flow = read_flow(zoo.build(name).eval(), IMAGES, bits=bits)
    for order in (flow, better_order(flow.aligned())):
        found = lay_out(order)
        assert found.lower_bound_bytes <= found.size_bytes <= 1.1 * found.lower_bound_bytes
    assert peak_bytes(better_order(flow)) <= peak_bytes(flow)


def test_lenet_300_100_holds_its_input_and_the_first_hidden_layer():
    model = zoo.build("lenet-300-100")
    assert live_bytes(read_flow(model, IMAGES)) == [4 * (784 + 300), 4 * 300, 4 * (300 + 100), 4 * 100, 4 * (100 + 10)]
    assert peak_bytes(read_flow(model, IMAGES, bits=8)) == 784 + 300


def test_the_peak_of_lenet_5_is_at_its_first_pooling():
    assert peak_bytes(read_flow(zoo.build("lenet-5"), IMAGES)) == 4 * (20 * 24 * 24 + 20 * 12 * 12)


def test_resnet_20_holds_three_maps_in_a_residual_block():
    """The shortcut, the input of the second convolution and its output; in int8 also the two unfolded patches."""
    assert peak_bytes(read_flow(zoo.build("resnet-20").eval(), IMAGES)) == 4 * 3 * 16 * 28 * 28
    assert peak_bytes(read_flow(zoo.build("resnet-20").eval(), IMAGES, bits=8)) == 3 * 16 * 28 * 28 + 2 * 2 * 16 * 9


def test_an_lstm_holds_its_states_and_gates_beside_both_sequences():
    model = nn.LSTM(28, 128, batch_first=True)
    flow = read_flow(model, torch.zeros(1, 20, 28))
    assert peak_bytes(flow) == 4 * (20 * 28 + 20 * 128 + 2 * 128 + 4 * 128)
    deep = read_flow(nn.LSTM(28, 128, num_layers=3, batch_first=True), torch.zeros(1, 20, 28))
    assert peak_bytes(deep) == 4 * (20 * 28 + 20 * 128 + 6 * 128 + 4 * 128 + 20 * 128)


def test_in_int8_an_lstm_keeps_its_state_and_gates_in_16_bits():
    flow = read_flow(nn.LSTM(28, 128, batch_first=True), torch.zeros(1, 20, 28), bits=8)
    assert peak_bytes(flow) == 20 * 28 + 20 * 128 + 2 * (2 * 128 + 4 * 128)


def test_the_gates_of_a_cell_are_there_while_it_runs():
    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.GRUCell(6, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.cell(x[:, 1], self.cell(x[:, 0]))

    assert peak_bytes(read_flow(Cell(), torch.zeros(1, 2, 6))) == 4 * (2 * 6 + 2 * 10 + 3 * 10)


@pytest.mark.parametrize(
    ("layer", "values"),
    [
        (nn.Conv2d(1, 20, 5), 2 * 1 * 25),
        (nn.Conv2d(8, 20, 3, stride=2), 2 * 8 * 9),
        (nn.Conv2d(8, 16, 3, groups=8), 16 * 9),
        (nn.Conv2d(8, 16, 3, groups=4), 2 * 2 * 9),
        (nn.Conv2d(8, 20, 1), 0),
        (nn.Conv1d(8, 20, 3), 2 * 8 * 3),
    ],
)
def test_an_int8_convolution_unfolds_two_patches_or_one_a_channel(layer, values):
    x = torch.zeros(1, layer.in_channels, *[9] * (layer.weight.ndim - 2))
    scratch = [buffer.size_bytes for buffer in read_flow(layer, x, bits=8).buffers if "scratch" in buffer.name]
    assert scratch == ([2 * values] if values else [])
    assert not any("scratch" in buffer.name for buffer in read_flow(layer, x).buffers)


def test_attention_holds_the_scores_of_all_heads():
    flow = read_flow(seeded(TransformerBlock), inputs(TransformerBlock))
    scores = next(buffer for buffer in flow.buffers if "scratch" in buffer.name)
    assert scores.size_bytes == 4 * 2 * 7 * 7


@pytest.mark.parametrize("depth", [1, 3])
def test_a_chain_of_layers_needs_what_hooks_see(depth):
    layers = [nn.Conv2d(3, 8, 3)]
    for _ in range(depth):
        layers += [nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1)]
    model, seen = nn.Sequential(*layers), []
    for module in model:
        module.register_forward_hook(lambda _, given, output: seen.append(4 * (given[0].numel() + output.numel())))
    x = torch.zeros(1, 3, 30, 30)
    model(x)
    seen.clear()
    model(x)
    hooked = list(seen)
    assert live_bytes(read_flow(model, x)) == hooked


def test_an_activation_takes_the_place_of_its_input():
    x = torch.zeros(1, 8)
    assert sizes(flow_through(lambda x: torch.sigmoid(torch.relu(x)), x)) == [32]
    assert sizes(flow_through(lambda x: functional.relu(x, inplace=True) + 1, x)) == [32]
    assert sizes(flow_through(lambda x: torch.relu(x) + x, x)) == [32, 32]
    assert sizes(flow_through(lambda x: x + x, x)) == [32]


def test_an_input_that_is_read_in_two_places_is_not_overwritten_in_place():
    flow = flow_through(lambda x: x[:1] - x, torch.zeros(1, 4, 4))
    assert sizes(flow) == [64]
    broadcast = flow_through(lambda x: x[:, :1] - x, torch.zeros(1, 4, 4))
    assert sizes(broadcast) == [64, 64]


def test_views_that_keep_the_order_are_free_and_others_are_copies():
    x = torch.zeros(1, 4, 6)
    free = flow_through(lambda x: x.reshape(4, 6).unsqueeze(0).flatten(1).view(1, 4, 6).contiguous(), x)
    assert not free.operations
    assert sizes(free) == [96]
    assert sizes(flow_through(lambda x: x.transpose(0, 1), x)) == [96]  # only a dimension of one moves
    assert sizes(flow_through(lambda x: x.transpose(1, 2), x)) == [96, 96]
    assert [op.writes for op in flow_through(lambda x: sum(x.chunk(2, 1)), x).operations] == [("add",), ("add_1",)]
    assert sizes(flow_through(lambda x: torch.relu(x[:, :, ::2]), x)) == [96, 48]


def test_half_of_a_tensor_is_not_overwritten_while_the_other_half_is_needed():
    def shuffle(x: Tensor) -> Tensor:
        first, second = x.chunk(2, 1)
        return torch.cat([torch.relu(first), second], 1)

    assert sizes(flow_through(shuffle, torch.zeros(1, 8, 2))) == [64, 32, 64]


def test_writing_in_place_renews_whatever_looks_at_the_tensor():
    def forward(x: Tensor) -> Tensor:
        y = x * 2
        row = y[0]
        y.add_(1)
        return row.flatten() + y.flatten()

    flow = flow_through(forward, torch.zeros(1, 8))
    assert sizes(flow) == [32]
    assert flow.operations[-1].reads == ("add_",)


def test_a_tensor_of_zeros_is_a_buffer_once_something_is_written_to_it():
    def forward(x: Tensor) -> Tensor:
        out = torch.zeros(4, 8)
        out[1] = x[0]
        out[2] = x[0] * 2
        return out

    assert sizes(flow_through(forward, torch.zeros(1, 8))) == [32, 128]  # x * 2 in place of x


class Cache(nn.Module):
    """Keeps what it saw: a buffer that lives in RAM from one inference to the next."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(5, 8))

    def forward(self, x: Tensor) -> Tensor:
        self.seen[0] = x[0]
        return self.seen.sum(0)


def test_a_state_that_is_written_lives_in_ram_all_the_time():
    flow = read_flow(Cache(), torch.zeros(1, 8))
    assert set(flow.inputs) > {"x"}
    assert live_bytes(flow)[-1] == 4 * (5 * 8 + 8)


def test_weights_and_what_comes_of_them_alone_are_no_buffers():
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(10, 8)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.table(torch.arange(4)) * 2

    assert sizes(read_flow(Positions(), torch.zeros(1, 4, 8))) == [128]


def test_a_norm_behind_a_convolution_disappears_and_one_elsewhere_works_in_place():
    behind = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout()).eval()
    flow = read_flow(behind, torch.zeros(1, 3, 4, 4))
    assert [operation.path for operation in flow.operations] == ["0", "2"]
    before = read_flow(nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 8, 1)).eval(), torch.zeros(1, 3, 4, 4))
    assert sizes(before) == [4 * 3 * 16, 4 * 8 * 16]


def test_folding_a_model_changes_nothing_of_its_flow():
    model = seeded(ResidualCnn)
    folded, _ = ex.Fold()(model, Task(model, calibration=[inputs(ResidualCnn)]))
    assert live_bytes(read_flow(folded, inputs(ResidualCnn))) == live_bytes(read_flow(model, inputs(ResidualCnn)))


@pytest.mark.parametrize("kind", [Mlp, ResidualCnn, TransformerBlock])
def test_a_coded_model_has_the_flow_of_its_original(kind):
    model = seeded(kind)
    coded, _ = ex.Quantize(bits=4)(model, Task(model, calibration=[inputs(kind)]))
    assert read_flow(coded, inputs(kind)) == read_flow(model, inputs(kind))


def test_token_ids_keep_four_bytes_with_any_bits():
    flow = read_flow(seeded(Tied), torch.zeros(3, 7, dtype=torch.int64), bits=8)
    assert next(b.size_bytes for b in flow.buffers if b.name in flow.inputs) == 4 * 7


def test_only_the_first_sample_counts_and_the_model_stays_as_it_was():
    model = seeded(ResidualCnn).train()
    before = photograph(model)
    assert read_flow(model, torch.zeros(1, 3, 8, 8)) == read_flow(model, torch.zeros(64, 3, 8, 8))
    assert unchanged(model, before)


def test_only_the_largest_of_values_and_indices_is_kept_if_nobody_reads_the_other():
    flow = flow_through(lambda x: x.max(dim=1)[0], torch.zeros(1, 6, 4))
    assert sizes(flow) == [96, 16]


class Branches(nn.Module):
    """Widens twice, then narrows twice: as written, both wide maps are alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.widen = nn.ModuleList(nn.Conv2d(4, 32, 3, padding=1) for _ in range(3))
        self.narrow = nn.ModuleList(nn.Conv2d(32, 4, 3, padding=1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        wide = [layer(x) for layer in self.widen]
        thin = [layer(y) for layer, y in zip(self.narrow, wide, strict=True)]
        return torch.cat(thin, 1)


def test_another_order_helps_a_network_of_branches():
    flow = read_flow(Branches(), torch.zeros(1, 4, 8, 8))
    map_ = 4 * 8 * 8
    assert peak_bytes(flow) == map_ * (3 * 32 + 4)
    assert peak_bytes(better_order(flow)) == map_ * (32 + 3 * 4)  # one wide map, two thin ones, and the input or the third
    assert lay_out(better_order(flow)).size_bytes == map_ * (32 + 3 * 4)


def test_a_model_that_cannot_be_followed_is_named_with_the_reason_and_a_way_out():
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(ExportError, match=r"memory of Odd cannot be laid out for one sample: torch.export cannot follow.*works"):
        read_flow(Odd(), torch.zeros(1, 4))


def test_a_shape_that_depends_on_values_is_refused():
    with pytest.raises(ExportError, match=r"cannot follow|known only when the model runs"):
        flow_through(lambda x: x[x > 0], torch.zeros(1, 4))


@pytest.mark.parametrize("bits", [4, 16, "8", True, None])
def test_other_bits_are_refused(bits):
    with pytest.raises(RangeError, match="use 32"):
        read_flow(Mlp(), torch.zeros(1, 12), bits=bits)
    with pytest.raises(RangeError):
        flow_of(torch.export.export(Mlp(), (torch.zeros(1, 12),)), bits=bits)
