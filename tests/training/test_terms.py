"""Terms: what a training makes small beside labels and teacher."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import enxuto as ex
from enxuto.errors import LayerError, RangeError, RecipeError, ShapeError, TaskError
from enxuto.recipe import from_yaml, line, to_yaml
from enxuto.training import teacher
from enxuto.training.objective import Moment, Term
from enxuto.training.teacher import Teacher
from enxuto.training.terms.table import TERMS

X = torch.randn(32, 3, 6, 6, generator=torch.Generator().manual_seed(0))
Y = X.mean((1, 2, 3)).gt(0).long()


class Net(nn.Module):
    """Two convolutions and a head; `spare` is never called."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 4, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(4), nn.Linear(4, 2)
        self.spare = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.conv2(F.relu(self.conv1(x))))).mean((2, 3)))


def task() -> ex.Task:
    torch.manual_seed(0)
    batches = list(zip(X.split(8), Y.split(8), strict=True))
    return ex.Task(Net().eval(), calibration=[X[:8]], train=batches, loss=F.cross_entropy)


def other(width: int = 6) -> nn.Module:
    torch.manual_seed(1)
    return Net(width).eval()


@dataclass(frozen=True)
class Size:
    """A term of a user's: the mean square of all weights."""

    weight: float = 1.0
    detached: bool = False

    def begin(self, student: nn.Module, task: ex.Task, teacher: Teacher | None) -> Term:
        def term(moment: Moment) -> Tensor:
            size = torch.stack([each.square().mean() for each in student.parameters()]).sum()
            return self.weight * (size.detach() if self.detached else size)

        return term


def distance(student: nn.Module, teacher: nn.Module, path: str) -> float:
    found = []
    for net in (student, teacher):
        net.get_submodule(path).register_forward_hook(lambda module, given, out: found.append(out.detach()))
        net(X)
    return float((found[0] - found[1]).square().mean() / found[1].var())


@pytest.mark.parametrize("width", [6, 3])
def test_features_come_near_to_those_of_the_original(width: int) -> None:
    one, student = task(), other(width)
    base = {"epochs": 10, "teacher": 0.0, "learning_rate": 1e-2}
    plain, _ = ex.Recover(**base)(student, one)  # type: ignore[arg-type]
    near, _ = ex.Recover(**base, terms=[ex.terms.Features("norm", weight=10.0)])(student, one)  # type: ignore[arg-type]
    assert distance(near, one.model, "norm") < 0.5 * distance(plain, one.model, "norm")


def test_a_projection_learns_where_shapes_differ_and_ends_with_the_training() -> None:
    one, student = task(), other(3)
    with pytest.raises(ShapeError, match=r"'conv1' of the student, \(8, 3, 6, 6\), with 'conv1' of the original, \(8, 6, 6, 6\)"):
        ex.Recover(terms=[ex.terms.Features("conv1")])(student, one)
    step = ex.Recover(epochs=5, terms=[ex.terms.Features(["conv1", "norm"], projection=True)])
    trained, record = step(student, one)
    again, _ = step(student, one)
    assert record.figures["loss_last"] < record.figures["loss_first"]
    assert trained.state_dict().keys() == student.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(trained.state_dict().values(), again.state_dict().values(), strict=True))
    assert not trained.norm._forward_hooks
    assert not student.norm._forward_hooks


def test_a_term_of_ones_own_is_added_to_the_rest() -> None:
    one, student = task(), other()
    options = {"epochs": 5, "learning_rate": 1e-2}
    sizes = [
        sum(float(p.detach().square().sum()) for p in ex.Recover(**options, terms=terms)(student, one)[0].parameters())  # type: ignore[arg-type]
        for terms in ([], [Size(30.0)])
    ]
    assert sizes[1] < 0.7 * sizes[0]


@pytest.mark.parametrize("epochs", [1, 3])
def test_the_original_is_not_touched_while_it_teaches(epochs: int) -> None:
    one = task()
    one.model.train()
    before = {name: tensor.clone() for name, tensor in one.model.state_dict().items()}
    ex.Recover(epochs=epochs, terms=[ex.terms.Features("conv2")])(other(), one)
    assert all(torch.equal(before[name], tensor) for name, tensor in one.model.state_dict().items())
    assert one.model.training


@pytest.mark.parametrize("held", [ex.terms.Features(["a", "b"], 0.5, True), ex.terms.Features({"a": "b"}), ex.terms.Rate("6 kB")])
def test_terms_survive_a_recipe_file(held: object) -> None:
    steps = (ex.Recover(terms=(held, ex.terms.Logits())),)  # type: ignore[arg-type]
    assert from_yaml(to_yaml(steps)) == steps
    assert type(held).__name__ in line(steps[0])
    own = (ex.Recover(terms=(Size(2.0),)),)
    assert from_yaml(to_yaml(own), own=True) == own
    with pytest.raises(RecipeError, match="term 1 of the recipe is 'test_terms:Size', which is not known"):
        from_yaml(to_yaml(own))


@pytest.mark.parametrize(
    ("terms", "error", "words"),
    [
        ([Size(detached=True)], TaskError, "the term Size gave a number that does not depend on the student"),
        ([ex.terms.Features("convv2")], LayerError, "looks at 'convv2', and the student has no such layer; near are 'conv2'"),
        ([ex.terms.Features({"conv2": "konv2"})], LayerError, "looks at 'konv2', and the teacher has no such layer"),
        ([ex.terms.Features("spare")], LayerError, "'spare', which the student's forward does not call"),
    ],
)
def test_terms_that_teach_nothing_are_refused_before_anything_is_trained(terms: list[object], error: type, words: str) -> None:
    student = other()
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    with pytest.raises(error, match=words):
        ex.Recover(terms=terms)(student, task())  # type: ignore[arg-type]
    assert all(torch.equal(before[name], tensor) for name, tensor in student.state_dict().items())


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: ex.Recover(terms=[Size]), RecipeError, "the class Size in terms= is no term; write an instance"),  # type: ignore[list-item]
        (lambda: ex.Recover(terms=[1.0]), RecipeError, "1.0 in terms= is no term"),  # type: ignore[list-item]
        (lambda: ex.Recover(terms="Features"), RecipeError, "is no list of terms"),  # type: ignore[arg-type]
        (lambda: ex.terms.Features("a", weight=-1.0), RangeError, "weight=-1.0 of Features is no number above 0"),
        (lambda: ex.terms.Features([]), LayerError, "write a path as 'layer1'"),
        (lambda: ex.terms.Features("a", projection="no"), RangeError, "projection='no'"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_term_is_refused(make: object, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        make()  # type: ignore[operator]


def test_the_table_holds_the_names_of_the_room() -> None:
    assert sorted(TERMS) == ex.terms.__all__
    assert all(TERMS[name] is getattr(ex.terms, name) for name in ex.terms.__all__)


def same(one: nn.Module, two: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def test_layers_that_are_checkpointed_are_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs again in the backward pass is not seen; batches in parts add up."""
    step, found = ex.Recover(epochs=2, terms=[ex.terms.Features(["conv1", "norm"])]), []
    for paths in ((), ("conv1", "norm")):
        monkeypatch.setattr(ex.Recover, "fitting", lambda self, student, task, paths=paths: (paths, 4))
        found.append(step(other(), task())[0])
    assert same(*found)


def test_what_layers_return_is_asked_anew_where_it_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    step = ex.Recover(epochs=3, terms=[ex.terms.Features("conv1")])
    kept, _ = step(other(), task())
    monkeypatch.setattr(teacher, "MOST_BYTES", 10_000)  # the first of the four batches
    asked, _ = step(other(), task())
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(kept.parameters(), asked.parameters(), strict=True))


def test_features_of_short_precision_are_compared_in_float() -> None:
    trained, record = ex.Recover(epochs=2, precision="bf16-mixed", terms=[ex.terms.Features("conv1")])(other(), task())
    assert record.figures["loss_last"] < record.figures["loss_first"]
    assert trained.conv1.weight.dtype == torch.float32


@dataclass(frozen=True)
class Quiet:
    """A term of a user's that looks inside: what a layer returns is small."""

    path: str

    def begin(self, student: nn.Module, task: ex.Task, teacher: Teacher | None) -> Term:
        return _Quiet(self.path)


class _Quiet:
    def __init__(self, path: str) -> None:
        self.student_paths, self.teacher_paths = (path,), ()

    def __call__(self, moment: Moment) -> Tensor:
        return moment.inside[self.student_paths[0]].square().mean()


def test_a_term_of_ones_own_may_look_inside_the_student_alone() -> None:
    one, student = task(), other()
    quiet, _ = ex.Recover(epochs=10, teacher=0.0, learning_rate=1e-2, terms=[Quiet("conv1")])(student, one)
    sizes = [float(net.conv1(X).detach().square().mean()) for net in (student, quiet)]
    assert sizes[1] < 0.3 * sizes[0]
    with pytest.raises(LayerError, match="Quiet looks at 'spare', which the student's forward does not call"):
        ex.Recover(terms=[Quiet("spare")])(student, one)
