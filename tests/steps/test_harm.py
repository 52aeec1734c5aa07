"""What strangers' networks showed: biases that 8 bits ruin, outputs that nobody judges, layers of which nothing stays, `view`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import enxuto as ex
from enxuto.evidence.influence import influence
from enxuto.sites import sites

BATCHES = [torch.randn(64, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]


def weather() -> nn.Module:
    """Temperature, wind and pressure: outputs that lie far from zero, and move little."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3)).eval()
    with torch.no_grad():
        net[2].bias.copy_(torch.tensor([300.0, 20.0, 1013.0]))
    return net


@pytest.mark.parametrize(
    "step", [ex.Quantize(tolerance=0.0003, rounding="gptq", biases=8), ex.Quantize(biases=8), ex.Share(bits=8, biases=8)], ids=str
)
def test_a_bias_that_eight_bits_ruin_stays_in_float_and_is_named(step) -> None:
    task = ex.Task(weather(), calibration=BATCHES)
    small, record = step(task.model, task)
    assert torch.equal(small[2].bias, task.model[2].bias)
    assert not torch.equal(small[0].bias, task.model[0].bias), "the others are coded"
    [left] = [change for change in record.skipped if change.path == "2.bias"]
    assert "8 bits would move the outputs by" in left.why
    moved = (small(BATCHES[0]) - task.model(BATCHES[0])).std() / task.model(BATCHES[0]).std(0).mean()
    assert moved < 0.05


def test_fewer_bits_of_biases_are_taken_as_asked() -> None:
    task = ex.Task(weather(), calibration=BATCHES)
    small, _ = ex.Quantize(biases=4)(task.model, task)
    assert not torch.equal(small[2].bias, task.model[2].bias)


class Two(nn.Module):
    """A large output beside the small one that matters."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.inner, self.last = nn.Linear(8, 64), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"hidden": 100 * self.wide(x), "logits": self.last(torch.relu(self.inner(x)))}


def test_an_output_that_is_ignored_moves_nothing() -> None:
    torch.manual_seed(0)
    model = Two().eval()
    found, missing = influence(model, BATCHES, sites(model), outputs={"hidden": "ignore"})
    assert set(found) == {"inner.weight", "last.weight"}
    assert set(missing) == {"wide.weight"}
    both, _ = influence(model, BATCHES, sites(model))
    alone = {key: both[key] / found[key] for key in found}
    assert all(share == pytest.approx(1, rel=0.3) for share in alone.values()), "each output counts in its own spread"
    _, record = ex.Factorize(size=0.6, layers="wide")(model, ex.Task(model, calibration=BATCHES, outputs={"hidden": "ignore"}))
    assert record.figures["output_error"] == 0


@pytest.mark.parametrize("scores", ["wanda", "magnitude"])
def test_a_layer_of_which_nothing_stays_is_told_and_is_no_error(scores) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4)).eval()
    with torch.no_grad():
        model[2].weight.mul_(1e-4)
    pruned, record = ex.Prune(0.9, scores=scores, refit=True)(model, ex.Task(model, calibration=BATCHES))
    assert not pruned[2].weight.any()
    assert "nothing of it stays" in next(change.why for change in record.changes if change.path == "2.weight")


def test_a_network_that_views_its_channels_is_trained_as_it_is() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(1, 8, 3, padding=1), nn.Linear(64, 5)

        def forward(self, x: Tensor) -> Tensor:
            found = torch.relu(self.conv(x))
            batch, channels, height, width = found.size()
            return self.fc(found.view(batch, channels * height, width).permute(0, 2, 1))

    torch.manual_seed(0)
    task = ex.Task(Reader().eval(), calibration=[torch.rand(8, 1, 8, 16) for _ in range(2)])
    small, _ = ex.run(task, [ex.Prune(0.5), ex.Recover(epochs=1)])
    assert small(task.sample).shape == (8, 16, 5)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ex.Quantize(biases=0), "biases=0 is outside"),
        (lambda: ex.Share(biases=9), "biases=9 is outside"),
        (lambda: ex.Quantize(tolerance=0.001, group=32), "group=32 and fit='mse'; leave these out, or tolerance"),
    ],
)
def test_what_is_refused_is_named_as_it_was_given(make, words) -> None:
    with pytest.raises(ex.Error, match=words):
        make()
