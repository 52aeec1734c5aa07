from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from channel_nets import Literal, Residual, Tied, image_nets
from enxuto.cut import Group, cut_
from enxuto.groups import Groups, find_groups, masked_
from enxuto.sites import held
from enxuto.zoo import NAMES, build

NETS = image_nets()
IMAGES = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@functools.cache
def found(name: str) -> Groups:
    return find_groups(NETS[name], IMAGES)


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model.double()(x.double() if x.is_floating_point() else x)


def some(groups: tuple[Group, ...], seed: int) -> list[tuple[Group, list[int]]]:
    chance = np.random.default_rng(seed)
    sizes = [int(chance.integers(0, group.size)) for group in groups]
    return [(g, sorted(chance.choice(g.size, n, replace=False).tolist())) for g, n in zip(groups, sizes, strict=True)]


def assert_cuts_are_exact(model: nn.Module, x: Tensor, groups: tuple[Group, ...]) -> None:
    """Any units may go from any groups at once, and the rest computes what it did with those units unread."""
    assert groups
    for seed in range(3):
        cuts = some(groups, seed)
        unread, smaller = copy.deepcopy(model), copy.deepcopy(model)
        masked_(unread, cuts)
        cut_(smaller, cuts)
        torch.testing.assert_close(outputs(smaller, x), outputs(unread, x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NETS)
def test_cutting_any_units_equals_not_reading_them(name: str) -> None:
    assert_cuts_are_exact(NETS[name], IMAGES, found(name).groups)


@pytest.mark.parametrize("name", NAMES)
def test_every_network_of_the_zoo_can_be_cut(name: str) -> None:
    torch.manual_seed(0)
    model, x = build(name, image_size=16).eval(), torch.randn(2, 1, 16, 16)
    assert_cuts_are_exact(model, x, find_groups(model, x).groups)


def test_a_tied_table_stays_tied_and_exact() -> None:
    torch.manual_seed(0)
    model, words = Tied().eval(), torch.randint(0, 11, (3, 6))
    group, *rest = find_groups(model, words).groups
    assert_cuts_are_exact(model, words, (group, *rest))
    cut_(model, [(group, [1, 4])])
    assert model.head.weight is model.table.weight
    assert model.head.weight.shape == (11, 10)
    assert (model.head.in_features, model.table.embedding_dim) == (10, 10)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("residual", [8, 12, 16]),
        ("depthwise", [8, 24]),
        ("dense", [6, 4, 4, 4]),
        ("grouped", [4, 6, 8]),
        ("shuffled", [8]),
        ("permuted", [7, 9]),
        ("lstm", [10]),
        ("bidirectional gru", [10]),
        ("projected lstm", [10, 6]),
        ("steps", [10]),
        ("gates", [12, 4, 8, 3]),
        ("padded", [8]),
        ("tokens", [16, 20]),
        ("literal", [9]),
        ("strange", [8, 8]),
    ],
)
def test_the_groups_are_those_a_person_would_find(name: str, sizes: list[int]) -> None:
    assert [group.size for group in found(name).groups] == sizes


def test_a_residual_sum_couples_what_it_adds() -> None:
    first = found("residual").groups[0]
    assert first.writers == ("stem.0", "conv2")
    assert first.readers == ("conv1", "conv3", "short")
    assert set(first.paths) == {"stem.0", "stem.1", "conv1", "conv2", "bn2", "conv3", "short"}
    owned = {(part.address, part.dim): part.indices([3]).tolist() for part in first.slices}
    assert owned["conv1.weight", 1] == [3]
    assert owned["stem.1.running_var", 0] == [3]


def test_columns_behind_a_permute_are_those_of_the_channel() -> None:
    group = found("permuted").groups[0]
    columns = next(part for part in group.slices if part.address == "fc1.weight" and part.dim == 1)
    assert columns.indices([2]).tolist() == list(range(2, 7 * 36, 7))


def test_a_hidden_unit_owns_a_row_of_every_gate_in_both_directions() -> None:
    group = found("bidirectional lstm").groups[0]
    owned = {(part.name, part.dim): part.indices([3]).tolist() for part in group.slices}
    assert owned["weight_ih_l0_reverse", 0] == [3, 13, 23, 33]
    assert owned["weight_hh_l1", 1] == [3]
    assert owned["weight_ih_l1", 1] == [3, 13]
    assert owned["weight", 1] == [3, 13]


def test_a_literal_size_in_forward_freezes_only_what_it_touches() -> None:
    literal = find_groups(Literal().eval(), IMAGES)
    assert [group.writers for group in literal.groups] == [("fc1",)]
    reasons = {change.path: change.why for change in literal.frozen}
    assert "literal" in reasons["conv"]
    assert "144" in reasons["conv"]


def test_an_unknown_operator_is_named_with_its_place() -> None:
    reasons = {change.path: change.why for change in found("strange").frozen}
    assert reasons["conv1"].startswith("aten.fft_fft cannot be followed")


def test_what_no_sample_reaches_is_named() -> None:
    model = Residual().eval()
    model.spare = nn.Linear(3, 3)
    reasons = {change.path: change.why for change in find_groups(model, IMAGES).frozen}
    assert reasons["spare"] == "the sample inputs do not reach it"


def test_a_transformer_says_what_attention_and_norms_keep() -> None:
    reasons = {change.path: change.why for change in found("tokens").frozen}
    assert reasons["encoder.self_attn"] == "attention mixes the channels (at 'encoder.self_attn')"
    assert reasons["mix"] == "layer norm mixes the channels (at 'encoder.norm1')"


def test_a_model_that_cannot_be_exported_is_named_whole(capfd: pytest.CaptureFixture[str]) -> None:
    class Choosing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.fc1(x)
            return self.fc2(x) if float(x.sum()) > 0 else self.fc2(-x)

    untraced = find_groups(Choosing().eval(), torch.randn(2, 4))
    assert not untraced.groups
    assert {change.path for change in untraced.frozen} == {"fc1", "fc2"}
    assert all(change.why.startswith("torch.export cannot follow this model") for change in untraced.frozen)
    assert capfd.readouterr() == ("", "")


def test_a_forward_that_scales_by_the_number_of_channels_is_found_out() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2, self.fc3 = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.fc1(x))
            return self.fc3(torch.relu(self.fc2(x / x.shape[1])))

    scaled = find_groups(Scaled().eval(), torch.randn(2, 4))
    assert [group.writers for group in scaled.groups] == [("fc2",)]
    assert "depends on their number" in {change.path: change.why for change in scaled.frozen}["fc1"]


def test_the_trace_leaves_the_model_alone() -> None:
    model = copy.deepcopy(NETS["bidirectional lstm"]).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights = [id(weight) for weight in model.rnn._flat_weights]
    find_groups(model, IMAGES)
    assert model.training
    assert model.rnn.training
    assert [id(weight) for weight in model.rnn._flat_weights] == weights
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_inputs_may_be_several_or_named() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.fc = nn.Linear(4, 8), nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
            return {"logits": self.fc(torch.relu(self.left(a) + self.right(b)))}

    a, b = torch.randn(5, 4), torch.randn(5, 3)
    for batch in ((a, b), {"b": b, "a": a}):
        groups = find_groups(Two().eval(), batch).groups
        assert [group.writers for group in groups] == [("left", "right")]


def test_cut_modules_print_as_what_they_are() -> None:
    model = copy.deepcopy(NETS["depthwise"])
    groups = find_groups(model, IMAGES).groups
    cut_(model, [(groups[0], [0, 5]), (groups[1], [1, 2, 3, 23])])
    assert (model.depthwise.in_channels, model.depthwise.out_channels, model.depthwise.groups) == (20, 20, 20)
    assert (model.twice.in_channels, model.twice.out_channels, model.twice.groups) == (6, 12, 6)
    assert (model.bn1.num_features, model.fc.in_features) == (20, 12)
    rnn = copy.deepcopy(NETS["projected lstm"])
    groups = find_groups(rnn, IMAGES).groups
    cut_(rnn, [(groups[0], [0, 1, 2]), (groups[1], [4])])
    assert (rnn.rnn.hidden_size, rnn.rnn.proj_size, rnn.rnn.input_size, rnn.fc.in_features) == (7, 5, 24, 5)


def test_cut_parameters_keep_dtype_and_requires_grad() -> None:
    model = copy.deepcopy(NETS["residual"]).bfloat16()
    model.conv1.weight.requires_grad_(False)
    group = found("residual").groups[1]
    cut_(model, [(group, [0])])
    assert model.conv1.weight.dtype == torch.bfloat16
    assert not model.conv1.weight.requires_grad
    assert model.conv2.weight.requires_grad
    assert all(held(model, part.address).shape[part.dim] == 11 for part in group.slices)


class Odd(nn.Module):
    """Two convolutions and a Linear, with a forward of one's own."""

    def __init__(self, forward: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.own = forward
        self.conv1, self.conv2, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.own(self, torch.relu(self.conv1(x))).mean((2, 3)))


def test_a_weight_read_without_its_layer_is_named() -> None:
    odd = Odd(lambda model, x: torch.einsum("bchw,dc->bdhw", x, model.conv2.weight[:, :, 0, 0])).eval()
    reasons = {change.path: change.why for change in find_groups(odd, IMAGES).frozen}
    assert set(reasons) == {"conv1", "conv2", "fc"}
    assert "aten.einsum cannot be followed" in reasons["conv1"]


class Sorted(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.sort(0).values


def test_a_weight_computed_in_forward_is_named() -> None:
    odd = Odd(lambda model, x: model.conv2(x)).eval()
    nn.utils.parametrize.register_parametrization(odd.conv1, "weight", Sorted())
    found = find_groups(odd, IMAGES)
    assert [group.writers for group in found.groups] == [("conv2",)]
    reasons = {change.path: change.why for change in found.frozen}
    assert "sort works across the channels" in reasons["conv1.parametrizations.weight"]


def test_blocks_without_gradients_do_not_hide_layers() -> None:
    def quiet(model: nn.Module, x: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.relu(model.conv2(x))

    assert len(find_groups(Odd(quiet).eval(), IMAGES).groups) == 2


def test_a_part_of_the_channels_that_is_written_to_stays() -> None:
    def shift(model: nn.Module, x: Tensor) -> Tensor:
        x = x.clone()
        x[:, :4] += 1
        return torch.relu(model.conv2(x))

    found = find_groups(Odd(shift).eval(), IMAGES)
    assert [group.writers for group in found.groups] == [("conv2",)]
    assert found.frozen[0].path == "conv1"


def test_channels_spread_from_one_or_mixed_into_one_stay() -> None:
    def attend(model: nn.Module, x: Tensor) -> Tensor:
        return model.conv2(x) * torch.sigmoid(x.mean(1, keepdim=True))

    found = find_groups(Odd(attend).eval(), IMAGES)
    assert [group.writers for group in found.groups] == [("conv2",)]
    assert {change.path: change.why for change in found.frozen}["conv1"] == "mean works across the channels"


def test_a_masked_value_hides_no_difference() -> None:
    class Counting(nn.Module):
        """Divides by the number of its own channels, as a literal."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.relu(self.first(x))
            return (self.second(h) / h.shape[1]).masked_fill(x[:, :4] > 1, float("inf"))

    torch.manual_seed(0)
    model, x = Counting(), torch.randn(16, 6)
    assert bool(model(x).isinf().any())
    groups = find_groups(model, x)
    assert not groups.groups
    assert "forward depends on their number" in str(groups.frozen)
