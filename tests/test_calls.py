from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import enxuto as ex
from enxuto.calls import attempt, call, evaluating, finite_answers, first_tensor
from enxuto.errors import TaskError
from toys import Mlp, ResidualCnn, seeded

X = torch.randn(2, 12)


def test_batches_are_tensors_tuples_or_dicts():
    class Sum(nn.Module):
        def forward(self, a, b=0, *, c=0):
            return a + 2 * b + 3 * c

    one = torch.ones(())
    assert call(Sum(), one) == 1
    assert call(Sum(), (one, one)) == 3
    assert call(Sum(), [one, one]) == 3
    assert call(Sum(), {"a": one, "c": one}) == 4


def test_the_first_tensor_is_found_wherever_it_is():
    x = torch.ones(2)
    for outputs in (x, (x, 1), [None, x], {"a": "text", "b": (x,)}, ((None, ()), {"c": [x]})):
        assert first_tensor(outputs) is x
    for outputs in (None, 3, [], {"a": {}}):
        with pytest.raises(TaskError, match="without a tensor"):
            first_tensor(outputs)


def test_evaluating_gives_modes_back_also_after_an_error():
    model = seeded(ResidualCnn).train()
    model.bn2.eval()
    before = [module.training for module in model.modules()]

    def fail():
        with evaluating(model):
            assert not model.training
            assert not torch.is_grad_enabled()
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fail()
    assert [module.training for module in model.modules()] == before
    assert torch.is_grad_enabled()


def test_a_batch_that_fails_later_on_is_named_by_its_number():
    model = seeded(Mlp).eval()
    with pytest.raises(TaskError, match=r"the model fails on calibration batch 2 \(\(2, 7\)\): RuntimeError"):
        list(finite_answers(model, [X, torch.randn(2, 7)]))
    with pytest.raises(TaskError, match="NaN or infinite outputs on calibration batch 3"):
        list(finite_answers(model, [X, X, X * float("nan")]))
    with pytest.raises(TaskError, match="training batch 4 is int; a batch is a tensor"):
        attempt(model, 5, "training batch 4")


class Late:
    """A loader whose second batch is wrong."""

    def __init__(self, wrong: Tensor) -> None:
        self.batches = [torch.randn(8, 12), wrong]

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.batches)


@pytest.mark.parametrize(
    "step",
    [
        ex.Quantize(bits=4, rounding="gptq"),
        ex.Quantize(activations=8),
        ex.Prune(scores="wanda"),
        ex.Prune(scores="taylor"),
        ex.PruneChannels(macs=0.5),
        ex.Factorize(size=0.5),
        ex.Equalize(),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "wrong", [torch.zeros(0, 12), torch.randn(8, 13), torch.full((8, 12), torch.nan)], ids=["empty", "wide", "nan"]
)
def test_a_wrong_batch_is_named_by_its_number(step: ex.Prune, wrong: Tensor) -> None:
    task = ex.Task(seeded(Mlp), calibration=Late(wrong))
    with pytest.raises(TaskError, match="calibration batch 2"):
        step(task.model, task)


def test_what_was_made_in_inference_mode_can_be_trained_on() -> None:
    with torch.inference_mode():
        model, batches = seeded(Mlp), [torch.randn(8, 12) for _ in range(2)]
    task = ex.Task(model, calibration=batches, train=[(x, torch.zeros(8, dtype=torch.long)) for x in batches], loss=cross_entropy)
    made, _ = ex.run(task, [ex.Prune(scores="taylor"), ex.Recover(epochs=1), ex.Quantize(bits=4, rounding="gptq")])
    with torch.no_grad():
        assert not torch.equal(made(batches[0]), model(batches[0]))
