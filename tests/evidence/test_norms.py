"""Mean squares of inputs and of gradients, against both written out; and what the batches say nothing of."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from enxuto.evidence.gradients import UNREACHED, squared_gradients
from enxuto.evidence.moments import UNSEEN, moments
from enxuto.evidence.norms import squared_inputs
from enxuto.sites import sites
from toys import Block, Mlp, ResidualCnn, inputs, seeded

KINDS: list[type[nn.Module]] = [Mlp, ResidualCnn, Block]


@pytest.mark.parametrize("kind", KINDS)
def test_squared_inputs_are_the_diagonal_of_the_moments_in_every_row(kind: type[nn.Module]) -> None:
    model = seeded(kind)
    found, missing = squared_inputs(model, [inputs(kind)], sites(model), 3)
    whole, _ = moments(model, [inputs(kind)], list(found), 3)
    for weight in sites(model):
        spread = found[weight.key].flatten(1)
        for each in whole[weight.key]:
            for rows, square in each.parts():
                torch.testing.assert_close(spread[rows], square.diagonal().expand_as(spread[rows]))
    assert not missing


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(4, 6, 3, groups=2), nn.ConvTranspose2d(4, 6, 3, groups=2), nn.Conv2d(4, 8, 3, groups=4)]
)
def test_every_group_of_a_convolution_has_its_own_inputs(layer: nn.Module) -> None:
    scales = torch.tensor([1.0, 1.0, 5.0, 5.0]).view(1, 4, 1, 1)
    images = torch.randn(4, 4, 9, 9, generator=torch.Generator().manual_seed(0)) * scales
    found, _ = squared_inputs(layer, [images], sites(layer))
    spread = found["weight"]
    assert spread.shape == layer.weight.shape
    first, second = spread.chunk(2)  # of either kind: of inputs for the transposed one
    assert first.mean() * 15 < second.mean()


def test_outputs_gradients_squared_are_those_of_every_output_and_sample() -> None:
    model = Mlp().eval()
    batch = torch.randn(4, 12, generator=torch.Generator().manual_seed(0))
    expected = torch.zeros_like(model.fc2.weight)
    for sample in batch:
        for output in model(sample[None])[0]:
            expected += torch.autograd.grad(output, model.fc2.weight, retain_graph=True)[0].square() / len(batch)
    runs = [squared_gradients(model, [batch], sites(model), seed)[0]["fc2.weight"] for seed in range(40)]
    torch.testing.assert_close(torch.stack(runs).mean(0), expected, rtol=0.25, atol=float(expected.mean()) / 20)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_labels_gradients_squared_are_the_fisher_information() -> None:
    model = Mlp().eval()
    batch = torch.randn(4, 12, generator=torch.Generator().manual_seed(0))
    expected = torch.zeros_like(model.fc2.weight)
    for sample in batch:
        logs = model(sample[None])[0].log_softmax(0)
        for log in logs:
            expected += (
                log.exp().detach() * torch.autograd.grad(log, model.fc2.weight, retain_graph=True)[0].square() / len(batch)
            )
    runs = [squared_gradients(model, [batch], sites(model), seed, "labels")[0]["fc2.weight"] for seed in range(60)]
    torch.testing.assert_close(torch.stack(runs).mean(0), expected, rtol=0.3, atol=float(expected.mean()) / 10)


def test_what_the_batches_do_not_reach_is_said() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.idle = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x)

    model = Idle().eval()
    found, missing = squared_inputs(model, [torch.randn(3, 4)], sites(model))
    assert (list(found), missing) == (["fc.weight"], {"idle.weight": UNSEEN})
    found, missing = squared_gradients(model, [torch.randn(3, 4)], sites(model))
    assert (list(found), missing) == (["fc.weight"], {"idle.weight": UNREACHED})
    assert squared_gradients(model, [torch.randn(3, 4)], sites(model, "idle")) == ({}, {"idle.weight": UNREACHED})
