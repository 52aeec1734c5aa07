"""Second moments, against the inputs written out; in passes, sampled, and where there are none."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from enxuto.evidence.moments import Moments, MomentsOf, by_rows, chosen, moments, seeds
from enxuto.evidence.products import Product
from enxuto.evidence.symmetric import symmetric_bytes
from enxuto.sites import sites
from toys import Mlp

BATCHES = [torch.randn(40, 12, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]


def test_moments_are_the_mean_square_of_all_inputs() -> None:
    model = Mlp().eval()
    found, missing = moments(model, BATCHES, ["fc1.weight", "fc2.weight"])
    given = torch.cat(BATCHES)
    for key, inputs in (("fc1.weight", given), ("fc2.weight", torch.relu(model.fc1(given)).detach())):
        [each] = found[key]
        assert (each.start, each.stop, each.count) == (0, len(model.get_parameter(key)), 120)
        torch.testing.assert_close(each.square, (inputs.T @ inputs / 120)[None])
    assert not missing


def test_many_inputs_are_sampled_the_same_for_the_same_seed_and_near_the_mean() -> None:
    model, images = nn.Conv2d(3, 4, 3), torch.randn(8, 3, 40, 40)
    first, again, other = (moments(model, [images], ["weight"], seed)[0]["weight"][0].square for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    patches = nn.functional.unfold(images, 3).transpose(1, 2).reshape(-1, 27)
    torch.testing.assert_close(first[0], patches.T @ patches / len(patches), atol=0.15, rtol=0)


def test_a_limit_makes_several_passes_with_the_same_result() -> None:
    model, passes = Mlp().eval(), []

    class Batches:
        def __iter__(self):
            passes.append(1)
            return iter(BATCHES)

    whole, parts = (MomentsOf(model, Batches(), sites(model), limit) for limit in (1 << 20, 1))
    for weight in sites(model):
        [one], [other] = whole(weight.key), parts(weight.key)
        assert torch.equal(one.square, other.square)
    assert len(passes) == 1 + 3


def test_samples_of_one_weight_do_not_hang_on_the_others() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    images = [torch.randn(8, 3, 40, 40)]
    together, alone = (moments(model, images, keys)[0]["1.weight"][0] for keys in (["0.weight", "1.weight"], ["1.weight"]))
    assert torch.equal(together.square, alone.square)


def test_a_row_that_several_products_read_has_one_mean() -> None:
    def of(start: int, stop: int, value: float, count: int) -> Moments:
        return Moments(start, stop, torch.full((1, 2, 2), value), count)

    apart = [of(2, 4, 1.0, 3), of(0, 2, 2.0, 5)]
    assert by_rows(apart) == apart[::-1]
    made = by_rows([of(0, 6, 1.0, 30), of(2, 4, 5.0, 10), of(8, 9, 1.0, 1)])
    assert [(each.start, each.stop, float(each.square[0, 0, 0]), each.count) for each in made] == [
        (0, 2, 1.0, 30),
        (2, 4, 2.0, 40),
        (4, 6, 1.0, 30),
        (8, 9, 1.0, 1),
    ]


def test_attention_to_itself_and_to_others_with_the_same_weights() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.attention(x, x, x)[0]
            return self.attention(x, x + 1, x + 1)[0]

    found, missing = moments(Twice(), [torch.randn(4, 5, 8)], ["attention.in_proj_weight"])
    assert not missing
    rows = [row for each in found["attention.in_proj_weight"] for row in range(each.start, each.stop)]
    assert rows == list(range(24))


def test_what_has_no_moments_has_a_reason() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle, self.table = nn.Linear(4, 4), nn.Linear(4, 4), nn.Embedding(5, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(self.table(x))

    model = Two().eval()
    of = MomentsOf(model, [torch.tensor([[1, 2]])], sites(model))
    assert [len(of(weight.key)) for weight in sites(model)] == [1, 0, 0]
    assert of.missing == {
        "idle.weight": "no product with it is seen on the calibration batches",
        "table.weight": "its rows are looked up, and multiply nothing",
    }


def test_inputs_too_large_to_be_squared_are_named() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    of = MomentsOf(model, [torch.full((2, 4), 1e25)], sites(model))
    assert not of("0.weight")
    assert of.missing == {"0.weight": "the squares of its inputs are too large for 32 bits"}


def test_doubt_is_what_other_samples_would_not_show() -> None:
    generator = torch.Generator().manual_seed(0)
    apart, together = torch.randn(512, 40, generator=generator), torch.randn(512, 1, generator=generator).expand(512, 40)
    model = nn.Sequential(nn.Linear(40, 4))
    doubts = [moments(model, list(given.split(64)), ["0.weight"])[0]["0.weight"][0].doubt for given in (apart, together)]
    assert doubts[0] > 0.7
    assert doubts[1] < 0.1
    assert moments(model, [apart[:1]], ["0.weight"])[0]["0.weight"][0].doubt == 1, "one sample shows nothing"


@pytest.mark.parametrize("rows", [5, 4096])  # few, whose sum has no blocks of chunks, and many
def test_wide_inputs_give_both_halves_of_their_square(rows: int) -> None:
    model = nn.Conv1d(2 * 300, 2, 1, groups=2)
    given = torch.randn(1, 600, rows, generator=torch.Generator().manual_seed(1))
    [each] = moments(model, [given], ["weight"])[0]["weight"]
    inputs = given[0].view(2, 300, rows)
    if rows > 5:
        product = Product("weight", 0, 2, 2, 300, rows, lambda chosen: inputs.transpose(1, 2)[:, chosen])
        inputs = inputs[:, :, chosen(product, seeds(["weight"], 0)["weight"])]
    torch.testing.assert_close(each.square, inputs @ inputs.transpose(1, 2) / inputs.shape[2])
    assert torch.equal(each.square, each.square.transpose(1, 2))


def test_half_of_each_square_is_held() -> None:
    model, widths = nn.Sequential(*[nn.Linear(1000, 1000) for _ in range(3)]), 3
    of = MomentsOf(model, [torch.randn(4, 1000)], sites(model), 1 << 30)
    of("0.weight")
    held = sum(block.nbytes for sums in of.held.values() for each in sums for block in each.held.blocks)
    assert held == (widths - 1) * symmetric_bytes(1, 1000) < 0.63 * (widths - 1) * 4 * 1000**2


def test_no_pass_holds_more_than_the_least_number_of_passes_asks_for() -> None:
    model, passes = nn.Sequential(*[nn.Linear(8, 8) for _ in range(6)]), []
    of = MomentsOf(model, [torch.randn(4, 8)], sites(model), 5 * symmetric_bytes(1, 8))
    for weight in sites(model):
        waiting = len(of.waiting)
        of(weight.key)
        passes += [waiting - len(of.waiting)] if waiting > len(of.waiting) else []
    assert passes == [3, 3]
