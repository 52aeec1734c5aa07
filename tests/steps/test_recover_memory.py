"""`Recover(memory=...)` keeps to its limit, changes nothing where it need not, and refuses before anything is trained."""

from __future__ import annotations

import logging
import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import enxuto as ex
from enxuto import zoo
from enxuto.errors import LimitError, RangeError
from enxuto.memory.recording import allocations
from enxuto.sizes import parse_bytes

IMAGES, LABELS = torch.randn(64, 1, 28, 28), torch.randint(0, 10, (64,))


def task(model: nn.Module) -> ex.Task:
    train = [(IMAGES[first : first + 32], LABELS[first : first + 32]) for first in (0, 32)]
    return ex.Task(model, calibration=[IMAGES[:4]], train=train, loss=F.cross_entropy)


def recovered(model: nn.Module, memory: str | int | None) -> tuple[nn.Module, int]:
    """The trained model, and the most bytes that the allocator gave out meanwhile."""
    bound = task(model)
    step = ex.Recover(epochs=1, memory=memory)
    with allocations() as reported:
        small, _ = step(model, bound)
    level = most = 0
    for _, change in reported:
        level += change
        most = max(most, level)
    return small, most


def weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_with_room_for_all_nothing_changes() -> None:
    model = zoo.build("transformer")
    assert torch.equal(weights(recovered(model, None)[0]), weights(recovered(model, "1 GB")[0]))


def test_a_plan_copies_no_data_and_draws_no_batch_of_a_shuffled_loader(caplog: pytest.LogCaptureFixture) -> None:
    class Right:
        """An `evaluate` that holds tensors."""

        labels = LABELS

        def __call__(self, model: nn.Module) -> float:
            return 0.0

    def trained(memory: str | None) -> Tensor:
        torch.manual_seed(0)
        rows = TensorDataset(IMAGES.flatten(1)[:, :8], LABELS)
        loader = DataLoader(rows, batch_size=16, shuffle=True, generator=torch.Generator().manual_seed(1))
        model = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 10))
        bound = ex.Task(model, calibration=[rows[:4][0]], train=loader, loss=F.cross_entropy, evaluate=Right())
        return weights(ex.Recover(memory=memory)(model, bound)[0])

    with caplog.at_level(logging.INFO):
        assert torch.equal(trained("1 GB"), trained(None))
    assert "measured in a real run" not in caplog.text


def test_without_batch_norms_parts_of_a_batch_teach_the_same() -> None:
    model = zoo.build("transformer")
    whole, most = recovered(model, None)
    parted, less = recovered(model, "8 MB")
    assert less < 0.75 * most
    assert less <= 1.05 * 8e6
    assert torch.allclose(weights(whole), weights(parted), atol=1e-4)


@pytest.mark.parametrize(("name", "limit"), [("transformer", 5_000_000), ("resnet-8", 4_000_000)])
def test_the_limit_is_kept_by_what_is_really_allocated(name: str, limit: int) -> None:
    model = zoo.build(name)
    _, most = recovered(model, limit)
    assert most <= 1.05 * limit


def test_zeros_stay_zero_and_codes_train_within_a_limit() -> None:
    model, steps = zoo.build("lenet-5"), [ex.Prune(0.5), ex.Quantize(bits=4), ex.Recover(epochs=1, memory="40 MB")]
    small, _ = ex.run(task(model), steps)
    assert float((small.fc1.weight == 0).float().mean()) > 0.4


def test_too_little_is_refused_with_what_is_needed() -> None:
    model = zoo.build("resnet-8")
    with pytest.raises(LimitError, match="one sample with AdamW takes"):
        ex.Recover(memory="1 MB")(model, task(model))
    with pytest.raises(RangeError, match="memory='much'"):
        ex.Recover(memory="much")


def test_the_average_and_the_optimizer_of_choice_count() -> None:
    model = zoo.build("lenet-300-100")
    weight_bytes = sum(parameter.numel() * 4 for parameter in model.parameters())
    asked = task(model)
    with pytest.raises(LimitError, match="with AdamW takes") as plain:
        ex.Recover(teacher=0.0, memory="2.2 MB").fitting(model, asked)
    with pytest.raises(LimitError) as averaged:
        ex.Recover(teacher=0.0, memory="2.2 MB", average=0.9).fitting(model, asked)
    with pytest.raises(LimitError, match="with SGD takes") as lean:
        ex.Recover(teacher=0.0, memory="2.2 MB", optimizer="SGD").fitting(model, asked)

    def needed(raised: pytest.ExceptionInfo[LimitError]) -> float:
        return parse_bytes(re.search(r"takes ([\d.,]+ \w+)[;,]", str(raised.value))[1])  # type: ignore[index]

    assert needed(averaged) - needed(plain) == pytest.approx(weight_bytes, rel=0.05)
    assert needed(plain) - needed(lean) > 1.9 * weight_bytes
