"""Every term that a teacher is needed for brings the student nearer to it in its own way, whatever was cut."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from test_terms import X, Y, other, task
from torch import Tensor, nn

import enxuto as ex
from enxuto.errors import RangeError, ShapeError, TaskError
from enxuto.functional.distill import decoupled, same_logits
from enxuto.functional.features import same_angles, same_attention, same_token_relations, same_tokens, told_apart
from enxuto.training.terms.table import TERMS

HELD = {"epochs": 10, "teacher": 0.0, "learning_rate": 1e-2}


def seen(net: nn.Module, path: str, inputs: Any = X) -> Tensor:
    """What a layer returns in evaluation mode."""
    found: list[Tensor] = []
    hook = net.get_submodule(path).register_forward_hook(lambda module, given, out: found.append(out.detach()))
    net.eval()(**inputs) if isinstance(inputs, Mapping) else net.eval()(inputs)
    hook.remove()
    return found[0]


def scores(net: nn.Module) -> Tensor:
    return net.eval()(X).detach()


WAYS: dict[str, tuple[Any, Callable[[nn.Module, nn.Module], Tensor]]] = {
    "attention": (ex.terms.Attention("conv1", 30.0), lambda a, b: same_attention(seen(a, "conv1"), seen(b, "conv1"))),
    "relations": (ex.terms.Relations("conv1", 30.0), lambda a, b: same_angles(seen(a, "conv1"), seen(b, "conv1"))),
    "contrast": (ex.terms.Contrast("norm", 3.0), lambda a, b: told_apart(seen(a, "norm"), seen(b, "norm"), 0.1)),
    "logits": (ex.terms.Logits(10.0), lambda a, b: same_logits(scores(a), scores(b))),
    "decoupled": (
        ex.terms.Decoupled(10.0),
        lambda a, b: decoupled(scores(a), scores(b), Y, alpha=1.0, beta=1.0, temperature=4.0),
    ),
}


@pytest.mark.parametrize("name", WAYS)
def test_the_student_comes_nearer_than_by_labels_alone(name: str) -> None:
    term, apart = WAYS[name]
    one, student = task(), other(3)  # half of the channels of its first layer
    plain, _ = ex.Recover(**HELD)(student, one)  # type: ignore[arg-type]
    near, _ = ex.Recover(**HELD, terms=[term])(student, one)  # type: ignore[arg-type]
    assert float(apart(near, one.model)) < 0.8 * float(apart(plain, one.model))


class Reader(nn.Module):
    """A small transformer, which takes a mask of padding."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.words = nn.Embedding(20, width)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(width, 2, 16, 0.0, batch_first=True) for _ in range(2))
        self.head = nn.Linear(width, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        states = self.words(input_ids)
        for layer in self.layers:
            states = layer(states, src_key_padding_mask=attention_mask == 0)
        return {"logits": self.head(states[:, 0])}


def reading() -> tuple[ex.Task, nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    words = torch.randint(1, 20, (32, 6))
    mask = (torch.arange(6) < torch.randint(2, 7, (32, 1))).long()
    batches = [{"input_ids": a, "attention_mask": b} for a, b in zip(words.split(8), mask.split(8), strict=True)]
    made = ex.Task(Reader(8).eval(), calibration=batches, outputs="classes")
    return made, Reader(4).eval(), {"input_ids": words, "attention_mask": mask}


@pytest.mark.parametrize(
    ("term", "apart"),
    [
        (ex.terms.TokenRelations(["layers.0", "layers.1"], 3.0), same_token_relations),
        (ex.terms.Tokens("layers.*", 3.0, projection=True), None),
    ],
)
def test_hidden_states_are_taught_without_labels_and_without_padding(term: Any, apart: Any) -> None:
    one, student, inputs = reading()
    counts = inputs["attention_mask"]
    if isinstance(term, ex.terms.Tokens):
        with pytest.raises(ShapeError, match=r"\(8, 6, 4\), with 'layers.0' of the original, \(8, 6, 8\); projection=True"):
            ex.Recover(terms=[ex.terms.Tokens("layers.0")])(student, one)
        term = ex.terms.Tokens({"layers.0": "layers.0", "layers.1": "layers.1"}, 3.0, projection=True)
    near, record = ex.Recover(epochs=15, teacher=0.0, learning_rate=1e-2, terms=[term])(student, one)
    assert record.figures["loss_last"] < 0.7 * record.figures["loss_first"], "the term alone, as nothing else is asked for"
    if apart is not None:
        losses = [
            float(apart(seen(net, "layers.1", inputs), seen(one.model, "layers.1", inputs), counts)) for net in (student, near)
        ]
        assert losses[1] < 0.7 * losses[0]


def test_padded_tokens_of_the_inputs_do_not_count() -> None:
    """The same loss whatever the hidden states of padding are."""
    one, _, inputs = reading()
    torch.manual_seed(5)
    student = Reader(8).eval()
    made = ex.Recover(epochs=0.1, teacher=0.0, terms=[ex.terms.Tokens("layers.1")])
    _, record = made(student, one)
    first = {name: each[:8] for name, each in inputs.items()}
    expected = same_tokens(seen(student, "layers.1", first), seen(one.model, "layers.1", first), first["attention_mask"])
    assert record.figures["loss_first"] == pytest.approx(float(expected), rel=1e-4)


def test_labels_that_are_missing_are_what_the_teacher_would_choose() -> None:
    one, student = task(), other()
    chosen = scores(one.model).argmax(-1)
    batches = [(x, torch.full((8,), -100)) for x in X.split(8)]
    losses = []
    for labels in (chosen.split(8), [y for _, y in batches]):
        train = list(zip(X.split(8), labels, strict=True))
        made = ex.Task(one.model, calibration=[X[:8]], train=train, loss=lambda out, y: out.sum() * 0)
        step = ex.Recover(epochs=1, teacher=0.0, terms=[ex.terms.Decoupled()])
        losses.append(step(student, made)[1].figures["loss_last"])
    assert losses[0] == losses[1] > 0


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: ex.terms.Attention("head"), ShapeError, r"\(8, 2\); name layers that return maps"),
        (lambda: ex.terms.TokenRelations("conv1"), ShapeError, "name layers that return .batch, tokens, width."),
        (lambda: ex.terms.Contrast("conv1"), ShapeError, "projection=True learns a map between them"),
        (lambda: ex.terms.Features({"conv1": "head"}), ShapeError, "name layers that differ along one axis at most"),
        (lambda: ex.terms.Logits(output="boxes"), TaskError, "compares output 'boxes', and the original returns '0'"),
    ],
)
def test_what_cannot_be_compared_is_refused_with_what_can(make: Callable[[], Any], error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        ex.Recover(terms=[make()])(other(3), task())


@pytest.mark.parametrize("name", [name for name, kind in TERMS.items() if getattr(kind, "taught", False)])
def test_weights_are_above_nothing(name: str) -> None:
    arguments = {} if name in ("Logits", "Decoupled") else {"layers": "a"}
    TERMS[name](**arguments, weight=1e-3)
    for weight in (0.0, -1.0, float("nan"), "1"):
        with pytest.raises(RangeError, match=f"of {name} is no number above 0"):
            TERMS[name](**arguments, weight=weight)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ex.terms.Decoupled(alpha=-1.0), "alpha=-1.0 of Decoupled"),
        (lambda: ex.terms.Decoupled(temperature=0.0), "temperature=0.0 of Decoupled"),
        (lambda: ex.terms.Contrast("a", temperature=0.0), "temperature=0.0 of Contrast"),
        (lambda: ex.terms.Relations("a", distances=0.0, angles=0.0), "leave nothing to compare"),
        (lambda: ex.terms.Relations("a", angles=-1.0), "angles=-1.0 of Relations"),
    ],
)
def test_numbers_out_of_range_are_refused(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(RangeError, match=words):
        make()


def test_base_and_terms_add_up(caplog: pytest.LogCaptureFixture) -> None:
    """The loss is share * teacher + (1 - share) * labels + each term."""
    caplog.set_level("INFO")
    one, student = task(), other()
    first = {}
    for teacher in (0.0, 0.3, 1.0):
        for terms in ((), (ex.terms.Logits(2.0),), (ex.terms.Logits(2.0), ex.terms.Logits(3.0))):
            record = ex.Recover(epochs=0.1, teacher=teacher, terms=terms)(student, one)[1]
            first[teacher, len(terms)] = record.figures["loss_first"]
    term = first[0.0, 1] - first[0.0, 0]
    for teacher in (0.0, 0.3, 1.0):
        base = (1 - teacher) * first[0.0, 0] + teacher * first[1.0, 0]
        assert first[teacher, 0] == pytest.approx(base, rel=1e-4)
        assert first[teacher, 1] == pytest.approx(base + term, rel=1e-4)
        assert first[teacher, 2] == pytest.approx(base + 2.5 * term, rel=1e-4)
    assert f"the first batch's loss of {first[0.0, 1]:.3g} has in it Logits {term:.3g}" in caplog.messages


def test_two_terms_that_need_the_same_layer_share_one_answer_of_the_teacher() -> None:
    one, calls = task(), []
    one.model.conv1.register_forward_hook(lambda module, given, out: calls.append(len(out)))
    terms = [ex.terms.Features("conv2"), ex.terms.Attention("conv2"), ex.terms.Logits()]
    ex.Recover(epochs=4, teacher=0.0, terms=terms)(other(), one)
    assert calls == [8, 8, 8, 4, 8, 8, 8], "sample inputs for each look inside, then each batch once, the first again by half"
