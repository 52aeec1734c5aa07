"""Taylor scores go through batches in parts that keep the memory of a pass within the weights."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from enxuto.batches import batch_size
from enxuto.evidence import samples
from enxuto.evidence.gradients import PASSES
from enxuto.groups import find_groups, scores


class OneNumber(nn.Module):
    """A score for each image, so that random signs square to one and each sample's change is exact."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 6, 3), nn.Linear(6, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.conv(images).relu().mean((2, 3)))


def test_scores_of_single_samples_are_their_squared_changes(monkeypatch):
    torch.manual_seed(0)
    model, batch = OneNumber().eval(), torch.randn(12, 1, 16, 16)
    monkeypatch.setattr(samples, "LEAST_BYTES", 1)  # the weights are fewer bytes than what autograd keeps of one image
    groups = find_groups(model, batch).groups
    with torch.no_grad():
        changes = model.conv(batch).relu().mean((2, 3)).double() * model.fc.weight[0].double()
    found = scores.taylor(model, groups, [batch], seed=0)
    np.testing.assert_allclose(found[0], PASSES * changes.square().sum(0).numpy(), rtol=1e-4)


@pytest.mark.parametrize("images", [1, 3, 7, 40])
def test_parts_are_all_samples_in_order_and_hold_no_more_than_allowed(images, monkeypatch):
    model, batch = OneNumber().eval(), torch.randn(40, 1, 16, 16)
    one = samples._held_bytes(model, batch[:1], "one")
    assert samples._held_bytes(model, batch, "all") == pytest.approx(40 * one, rel=0.1)
    monkeypatch.setattr(samples, "LEAST_BYTES", images * one)
    places, parts = zip(*samples.in_parts(model, [batch, batch]), strict=True)
    assert (places[0], places[-1]) == ("calibration batch 1", "calibration batch 2")
    assert torch.equal(torch.cat(parts), torch.cat([batch, batch]))
    assert max(map(batch_size, parts)) <= images


def test_a_network_for_one_number_of_samples_gets_whole_batches(monkeypatch):
    class Fixed(OneNumber):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images.view(12, 1, 16, 16))

    monkeypatch.setattr(samples, "LEAST_BYTES", 1)
    batch = torch.randn(12, 1, 16, 16)
    assert [part is batch for _, part in samples.in_parts(Fixed().eval(), [batch])] == [True]
