import pytest
import torch
from torch import nn

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
