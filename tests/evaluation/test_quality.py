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
from enxuto.evaluation.quality import agreement, paired_change
from enxuto.judging import quality


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


class Answers(nn.Module):
    """Gives what it was told for each batch in turn; a batch is its number."""

    def __init__(self, *answers):
        super().__init__()
        self.answers = answers

    def forward(self, number):
        return self.answers[int(number[0])]


def judged(before, after, **more):
    """The values of two lists of answers, batch by batch, or of one answer each."""
    before, after = (answers if isinstance(answers, list) else [answers] for answers in (before, after))
    numbers = [torch.tensor([number]) for number in range(len(before))]
    return agreement(Answers(*before), numbers, **more)(Answers(*after)).tolist()


CORNERS = torch.tensor([[1.0, -3.0], [-1.0, 3.0]])  # each column varies around 0, by 1 and by 9


@pytest.mark.parametrize(
    ("before", "after", "values"),
    [
        (CORNERS, CORNERS + torch.tensor([[1.0, 0.0], [0.0, 3.0]]), [0.5, 0.5]),
        (CORNERS + torch.tensor([0.0, 1e4]), CORNERS + torch.tensor([0.0, 1e4 + 3]), [0.5, 0.5]),
        (CORNERS, CORNERS * 4, [0.0, 0.0]),
        (torch.tensor([[3.0], [4.0], [5.0]]), torch.tensor([[3.0], [4.5], [9.0]]), [1.0, 1 - 0.25 / (2 / 3), 0.0]),
        (torch.tensor([[0.2, 0.8], [1.0, 0.0]]), torch.tensor([[0.4, 0.6], [0.3, 0.7]]), [1.0, 0.0]),
        (torch.tensor([[0.2, 0.8], [0.9, 0.1]]).log(), torch.tensor([[0.4, 0.6], [0.3, 0.7]]).log(), [1.0, 0.0]),
        (torch.zeros(2, 2, 2), torch.stack([torch.zeros(2, 2), torch.ones(2, 2)]), [1.0, 0.0]),
        (torch.tensor([[1, 2], [3, 4]]), torch.tensor([[1, 2], [3, 5]]), [1.0, 0.5]),
        (torch.tensor(2.0), torch.tensor(1.0), [0.75]),
        (torch.tensor([1 + 1j, -1 - 1j]), torch.tensor([1 + 1j, -1 - 2j]), [1.0, 0.5]),
    ],
    ids=["values", "offset", "far", "one-number", "probabilities", "logarithms", "zeros", "integers", "no-axes", "complex"],
)
def test_agreement_of_a_sample_is(before, after, values):
    assert judged(before, after) == pytest.approx(values)


def test_an_infinity_agrees_with_the_same_one_only():
    masked = torch.tensor([[1.0, -torch.inf], [3.0, -torch.inf]])
    assert judged((CORNERS, masked), (CORNERS, masked)) == [1.0, 1.0]
    other = torch.tensor([[1.0, -torch.inf], [3.0, 5.0]])
    assert judged((CORNERS, masked), (CORNERS, other)) == [1.0, 0.0]


def test_a_constant_offset_does_not_hide_an_error():
    x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    offset = torch.tensor([0.0, 0.0, 100.0, 0.0])
    found = torch.tensor(judged(x + offset, x * 0.7 + offset)).mean()
    assert 0.88 < found < 0.94  # nine hundredths of the variance are lost
    assert found == pytest.approx(float(torch.tensor(judged(x, x * 0.7)).mean()), abs=1e-3)


def test_no_channel_drowns_in_another():
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([1000.0, 1.0])
    assert sum(judged(x, x * torch.tensor([1.0, 0.0]))) / 200 < 0.65


def test_a_channel_that_never_varies_is_measured_by_the_others():
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 1.0, 0.0]) + 7
    assert min(judged(x, x + 1e-3)) > 1 - 1e-5
    assert max(judged(x, x + torch.tensor([0.0, 0.0, 3.0]))) == 0


def test_an_embedding_is_judged_by_its_error_and_not_by_its_largest_coordinate():
    x = nn.functional.normalize(torch.randn(100, 384, generator=torch.Generator().manual_seed(0)), dim=1)
    noisy = nn.functional.normalize(x + 0.0033 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1)), dim=1)
    cosine = float((x * noisy).sum(1).mean())
    assert 0.99 < sum(judged(x, noisy)) / 100 <= cosine
    assert (x.argmax(1) == noisy.argmax(1)).double().mean() < 0.95


def test_the_value_of_a_sample_is_that_of_its_worst_output():
    box, scores = CORNERS, torch.tensor([[0.2, 0.8], [1.0, 0.0]])
    before = {"box": box, "deep": [(scores, None)], "number": torch.tensor([3, 4])}
    assert judged(before, before) == [1.0, 1.0]
    worse = before | {"deep": [(scores.flip(0), None)]}
    assert judged(before, worse) == [0.0, 0.0]
    assert judged(before, before | {"box": torch.zeros(2, 2)}) == [0.0, 0.0]
    assert judged(before, before | {"number": torch.tensor([3, 5])}) == [1.0, 0.0]
    assert judged(before, worse, outputs={"deep": "ignore"}) == [1.0, 1.0]


def test_a_task_says_what_outputs_are():
    scores, other = torch.tensor([[9.0, 8.0], [1.0, 5.0]]), torch.tensor([[1.0, 0.0], [5.0, 4.0]])
    assert judged(scores, other, outputs="classes") == [1.0, 0.0]
    assert judged((CORNERS, scores), (CORNERS, other), outputs={"1": "classes"}) == [1.0, 0.0]
    images = torch.stack([scores, scores]).unsqueeze(-1)  # [samples, classes, height, width]
    assert judged(images, images.flip(1), outputs="classes") == [0.0, 0.0]
    even, odd = torch.tensor([[0.2, 0.8], [1.0, 0.0]]), torch.tensor([[0.4, 0.6], [0.9, 0.1]])
    assert judged(even, odd) == [1.0, 1.0]
    assert judged(even, odd, outputs="values") == pytest.approx([1 - 0.04 / 0.16, 1 - 0.01 / 0.16])


def test_outputs_without_a_row_for_each_sample_count_for_all_of_the_batch():
    assert judged((CORNERS, torch.tensor([1, 2, 3])), (CORNERS, torch.tensor([1, 2, 4]))) == pytest.approx([2 / 3, 2 / 3])
    lstm = nn.LSTM(3, 4, batch_first=True)
    x = torch.randn(5, 6, 3)
    assert agreement(lstm, [x])(lstm).tolist() == [1.0] * 5


def test_batches_of_several_lengths_are_judged_by_channel():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.out = nn.Embedding(9, 4), nn.Linear(4, 3)

        def forward(self, tokens):
            h = self.out(self.embed(tokens))
            return h, h.transpose(1, 2)

    model = Words()
    batches = [torch.randint(0, 9, (2, length)) for length in (3, 7, 4)]
    judge = agreement(model, batches)
    assert judge(model).tolist() == [1.0] * 6
    with torch.no_grad():
        model.out.weight.mul_(-1)
    assert float(judge(model).max()) < 0.5


def test_a_loss_that_a_model_returns_is_no_output():
    before = {"loss": torch.tensor(0.01), "scores": CORNERS}
    assert judged(before, before | {"loss": torch.tensor(9.0)}) == [1.0, 1.0]


def test_names_that_an_exported_file_lost_are_taken_in_their_order():
    before = {"box": CORNERS, "number": torch.tensor([3, 4])}
    assert judged(before, (CORNERS, torch.tensor([3, 4]))) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("after", "words"),
    [
        ((torch.ones(2, 4), torch.ones(2, 1)), r"\(2, 4\) as output '0' where the original returned \(2, 3\)"),
        (torch.ones(2, 3), r"1 tensors where the original returned 2 \(0, 1\)"),
    ],
)
def test_outputs_of_another_shape_do_not_agree_but_are_refused(after, words):
    with pytest.raises(TaskError, match=words):
        judged((torch.ones(2, 3), torch.ones(2, 1)), after)


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
