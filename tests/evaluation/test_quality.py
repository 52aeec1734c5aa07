"""Quality of a model, checked; agreement without labels; the paired change and the coverage of its interval."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from enxuto.errors import TaskError
from enxuto.evaluation.quality import agree, agreement, paired_change, quality


def test_a_model_agrees_with_itself_on_every_sample():
    model = nn.Linear(4, 3)
    found = quality(agreement(model, [torch.randn(5, 4), torch.randn(2, 4)]), model)
    assert torch.equal(found, torch.ones(7, dtype=torch.float64))


def test_agreement_remembers_outputs_and_not_the_model_that_is_changed_later():
    model = nn.Linear(4, 3)
    judge = agreement(model, [torch.randn(50, 4)])
    nn.init.normal_(model.weight)
    assert float(judge(model).mean()) < 1
    assert type(pickle.loads(pickle.dumps(judge))) is type(judge)


@pytest.mark.parametrize(
    ("before", "after", "values"),
    [
        (torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([[0.0, 9.0], [1.0, 2.0]]), [1.0, 0.0]),
        (torch.tensor([[3.0], [4.0], [1.0]]), torch.tensor([[3.0], [2.0], [9.0]]), [1.0, 0.75, 0.0]),
        (torch.zeros(2, 2, 2), torch.stack([torch.zeros(2, 2), torch.ones(2, 2)]), [1.0, 0.0]),
        (torch.tensor([[1, 2], [3, 4]]), torch.tensor([[1, 2], [3, 5]]), [1.0, 0.5]),
        (torch.tensor(2.0), torch.tensor(1.0), [0.75]),
    ],
    ids=["classes", "one number", "images of zeros", "integers", "no axes"],
)
def test_agreement_of_a_sample_is(before, after, values):
    assert agree(before, after).tolist() == pytest.approx(values)


def test_outputs_of_another_shape_do_not_agree_but_are_refused():
    with pytest.raises(TaskError, match=r"\(2, 4\)"):
        agree(torch.ones(2, 3), torch.ones(2, 4))


def test_agreement_without_a_batch_is_refused():
    with pytest.raises(TaskError, match="no batch"):
        agreement(nn.Linear(2, 2), [])


@pytest.mark.parametrize("value", [0.5, 1, True, np.float32(0.5), torch.tensor(0.5), torch.tensor([0.0, 1.0])])
def test_evaluate_may_return_a_number_or_a_value_per_sample(value):
    assert quality(lambda model: value, nn.Identity()).dtype == torch.float64


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (math.nan, "1 NaN or infinite values of 1"),
        (torch.tensor([1.0, math.inf]), "1 NaN or infinite values of 2"),
        (torch.ones(2, 2), r"shape \(2, 2\)"),
        (torch.ones(0), r"shape \(0,\)"),
        (None, "NoneType"),
        ("0.5", "str"),
    ],
)
def test_any_other_value_of_evaluate_is_refused(value, words):
    with pytest.raises(TaskError, match=words):
        quality(lambda model: value, nn.Identity())


def test_an_evaluate_that_fails_is_reported_with_its_own_words():
    def evaluate(model: nn.Module) -> float:
        return model.fc.weight.mean()

    with pytest.raises(TaskError, match=r"AttributeError.*fc"):
        quality(evaluate, nn.Identity())


def test_evaluate_sees_the_model_in_eval_mode_and_leaves_it_as_it_was():
    model = nn.Dropout().train()
    assert float(quality(lambda module: float(module.training), model)) == 0
    assert model.training


def test_single_numbers_have_a_change_and_no_interval():
    assert paired_change(torch.tensor(0.5), torch.tensor(0.25)) == (-0.25, None, 0)


def test_values_of_different_samples_are_refused():
    with pytest.raises(TaskError, match="same samples"):
        paired_change(torch.ones(3), torch.ones(4))


def test_no_change_in_few_samples_is_not_certainty():
    change, interval, samples = paired_change(torch.ones(20), torch.ones(20))
    assert (change, samples) == (0.0, 20)
    assert interval[0] < -0.02
    assert interval[1] > 0.02


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=60))
def test_the_interval_holds_the_change_and_turns_with_its_sign(pairs):
    before, after = torch.tensor(pairs).double().unbind(1)
    change, (low, high), _ = paired_change(before, after)
    back, (other_low, other_high), _ = paired_change(after, before)
    assert -1 <= low <= change <= high <= 1
    assert (back, other_low, other_high) == pytest.approx((-change, -high, -low))


@pytest.mark.parametrize(
    ("samples", "lost", "gained", "most"),
    [(100, 0.02, 0.01, 1.0), (500, 0.01, 0.005, 0.985), (1000, 0.05, 0.02, 0.97)],
    ids=["three changes: cautious", "eight changes", "seventy changes: exact"],
)
def test_the_interval_of_right_and_wrong_covers_the_truth(samples, lost, gained, most):
    generator = torch.Generator().manual_seed(samples)
    draws = torch.rand(1000, samples, generator=generator, dtype=torch.float64)
    hits = 0
    for row in draws:
        before = (row < 0.9).double()
        after = torch.where(row < lost, 0.0, torch.where(row > 1 - gained, 1.0, before))
        _, (low, high), _ = paired_change(before, after)
        hits += low <= gained - lost <= high
    assert 0.935 <= hits / 1000 <= most


def test_the_interval_of_real_values_covers_the_truth():
    generator = torch.Generator().manual_seed(3)
    hits = 0
    for _ in range(1000):
        before = torch.rand(200, generator=generator, dtype=torch.float64)
        after = before - 0.1 * torch.rand(200, generator=generator, dtype=torch.float64).square()
        _, (low, high), _ = paired_change(before, after)
        hits += low <= -0.1 / 3 <= high
    assert 0.935 <= hits / 1000 <= 0.97


def test_pairing_narrows_the_interval():
    generator = torch.Generator().manual_seed(0)
    before = torch.rand(300, generator=generator, dtype=torch.float64)
    after = before - 0.01
    _, paired, _ = paired_change(before, after)
    _, apart, _ = paired_change(before, after[torch.randperm(300, generator=generator)])
    assert paired[1] - paired[0] < 0.01 * (apart[1] - apart[0])


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.array(["a", "b"]), "evaluate returned <U1; return one number"),
        (np.array([None]), "evaluate returned object"),
        (torch.ones(3, dtype=torch.complex64), r"evaluate returned torch\.complex64"),
        (1j, "evaluate returned complex"),
    ],
)
def test_what_is_no_real_number_is_no_quality(value, words):
    with pytest.raises(TaskError, match=words):
        quality(lambda model: value, nn.Linear(4, 3))


def test_an_evaluate_that_changes_the_weights_is_refused():
    def train_a_little(model):
        model.weight.add_(1)
        return 0.5

    model = nn.Sequential(nn.Linear(4, 3))[0]
    with pytest.raises(TaskError, match="evaluate changed the weights of the model \\('weight'\\); it must only call it"):
        quality(train_a_little, model)


def test_agreement_names_the_batch_on_which_a_model_gives_no_numbers():
    model = nn.Linear(4, 3)
    with pytest.raises(TaskError, match="NaN or infinite outputs on calibration batch 2"):
        agreement(model, [torch.ones(2, 4), torch.full((2, 4), float("nan"))])
