from collections import UserDict, namedtuple
from collections.abc import MutableMapping
from dataclasses import make_dataclass

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from enxuto.artifact.save import save
from enxuto.errors import RangeError, TaskError
from enxuto.layers import Coded, Rehearsal
from enxuto.recipe import run
from enxuto.sites import sites
from enxuto.steps.factorize import Factorize
from enxuto.steps.prune import Prune
from enxuto.steps.quantize import Quantize
from enxuto.steps.recover import Recover
from enxuto.steps.share import Share
from enxuto.task import Task
from enxuto.training.lessons import lessons, settled
from toys import Block, Mlp, ResidualCnn, Tied, inputs, output, photograph, seeded, unchanged


def labelled(kind, batches=6):
    x = inputs(kind)
    generator = torch.Generator().manual_seed(1)
    pairs = [
        (x + 0.1 * torch.randn(x.shape, generator=generator), torch.randint(0, 5, x.shape[:1], generator=generator))
        for _ in range(batches)
    ]
    return Task(seeded(kind), calibration=[x], train=pairs, loss=nn.functional.cross_entropy)


@pytest.mark.parametrize("kind", [Mlp, ResidualCnn, Block])
@pytest.mark.parametrize(
    "first", [[Prune(sparsity=0.8)], [Prune(sparsity=0.8), Share(3)], [Prune(sparsity=0.5), Quantize(4)]], ids=str
)
def test_zeros_stay_zero_and_the_rest_learns(kind, first):
    task = labelled(kind)
    small, _ = run(task, first)
    model, record = Recover(learning_rate=1e-2)(small, task)
    for before, after in zip(sites(small), sites(model), strict=True):
        assert type(before.tensor) is type(after.tensor)
        assert bool((after.read()[before.read() == 0] == 0).all())
        assert not torch.equal(before.read(), after.read())
    assert record.figures["batches"] == 6


@pytest.mark.parametrize("first", [Quantize(4), Quantize(1), Quantize(3, per="tensor"), Share(2)], ids=str)
def test_codes_and_grids_learn(first):
    task = labelled(Mlp)
    small, _ = first(task.model, task)
    model, _ = Recover(epochs=4, learning_rate=3e-2)(small, task)
    before, after = small.fc1.coded["weight"], model.fc1.coded["weight"]
    assert not torch.equal(before.codes, after.codes)
    grids = [tensor.scale if hasattr(tensor, "scale") else tensor.codebook for tensor in (before, after)]
    assert not torch.equal(*grids)
    assert len(sites(model)[0].read().unique()) <= 2**8


def test_recovering_brings_the_outputs_nearer_to_the_teacher():
    x = torch.randn(64, 12)
    task = Task(seeded(Mlp), calibration=list(x.split(8)))
    small, _ = Prune(sparsity=0.6)(task.model, task)
    model, record = Recover(epochs=10, learning_rate=5e-3)(small, task)

    def far(m):
        return float((output(m, x) - output(task.model, x)).norm())

    assert far(model) < 0.6 * far(small)
    assert record.figures["loss_last"] < record.figures["loss_first"]


@pytest.mark.parametrize("first", [Prune(sparsity=0.7), Share(3)], ids=str)
def test_the_same_seed_gives_the_same_bytes(first, tmp_path):
    for name in ("a", "b"):
        torch.manual_seed(hash(name) % 1000)  # the state of torch's own generator must not matter
        task = labelled(ResidualCnn)
        model, _ = run(task, [first, Recover()])
        save(model, tmp_path / name, original=task.model)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_shuffled_loader_and_dropout_follow_the_seed():
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5), nn.Linear(16, 3)))
    data = torch.utils.data.TensorDataset(torch.randn(24, 4), torch.randint(0, 3, (24,)))

    def trained(seed):
        loader = DataLoader(data, batch_size=4, shuffle=True)
        task = Task(model, calibration=[torch.randn(2, 4)], train=loader, loss=nn.functional.cross_entropy, seed=seed)
        return Recover(learning_rate=1e-2)(model, task)[0][0].weight

    assert torch.equal(trained(0), trained(0))
    assert not torch.equal(trained(0), trained(1))


@pytest.mark.parametrize("kind", [Mlp, ResidualCnn, Block])
def test_models_and_random_numbers_are_left_as_they_were(kind):
    task = labelled(kind)
    task.model.train()
    small, _ = Prune(sparsity=0.5)(task.model, task)
    before, given, chance = photograph(task.model), photograph(small), torch.get_rng_state()
    Recover(epochs=0.5)(small, task)
    assert unchanged(task.model, before)
    assert unchanged(small, given)
    assert torch.equal(torch.get_rng_state(), chance)


@pytest.mark.parametrize("first", [Prune(sparsity=0.5), Share(3), Quantize(4)], ids=str)
def test_tied_weights_stay_tied(first):
    task = Task(seeded(Tied), calibration=[torch.arange(6).view(2, 3)])
    small, _ = first(task.model, task)
    model, _ = Recover()(small, task)
    own, twin = sites(model)[0], model.head
    assert torch.equal(own.read(), twin.weight)
    if isinstance(model.head, Coded):
        assert model.head.coded["weight"] is model.embed.coded["weight"]
    else:
        assert model.head.weight is model.embed.weight


def test_nothing_of_the_training_remains_in_the_model():
    task = labelled(ResidualCnn)
    small, _ = run(task, [Prune(sparsity=0.5), Share(3, "fc"), Quantize(8, "conv*", biases=8)])
    model, _ = Recover()(small, task)
    assert not any(isinstance(module, Rehearsal) for module in model.modules())
    assert list(model.state_dict()) == list(small.state_dict())
    assert [type(m) for m in model.modules()] == [type(m) for m in small.modules()]
    assert all(tensor.is_contiguous() for tensor in model.state_dict().values())


def test_networks_with_two_and_three_dimensional_convolutions_train():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.flat, self.deep = nn.Conv2d(3, 4, 3), nn.Conv3d(1, 2, 2)

        def forward(self, x):
            return self.deep(self.flat(x)[:, None]).mean(dim=(2, 3, 4))

    task = Task(Both(), calibration=[torch.randn(2, 3, 6, 6)])
    for first in (Prune(sparsity=0.5), Quantize(4)):
        model, _ = run(task, [first, Recover()])
        assert output(model, task.calibration[0]).shape == (2, 2)


def test_thin_layers_train_as_well():
    task = labelled(Mlp)
    small, _ = Factorize(rank=4)(task.model, task)
    model, _ = Recover(learning_rate=1e-2)(small, task)
    assert not torch.equal(model.fc1.down.weight, small.fc1.down.weight)


def test_loops_over_data_end():
    x, y = torch.randn(4, 12), torch.randint(0, 5, (4,))
    model = seeded(Mlp)
    generator = ((x, y) for _ in range(3))
    with pytest.raises(TaskError, match="can be read only once; give a list"):
        Recover()(model, Task(model, calibration=[x], train=generator, loss=nn.functional.cross_entropy))

    class Stream(IterableDataset):
        def __iter__(self):
            return iter([(x[0], y[0])] * 8)

    task = Task(model, calibration=[x], train=DataLoader(Stream(), batch_size=4), loss=nn.functional.cross_entropy)
    assert Recover(epochs=2)(model, task)[1].figures["batches"] == 4

    class Once:
        def __init__(self, times):
            self.left = times

        def __len__(self):
            return 1

        def __iter__(self):
            self.left -= 1
            return iter([(x, y)] * (self.left >= 0))

    Recover(epochs=3)(model, Task(model, calibration=[x], train=Once(1), loss=nn.functional.cross_entropy))
    with pytest.raises(TaskError, match="gave none"):
        Recover(epochs=3)(model, Task(model, calibration=[x], train=Once(0), loss=nn.functional.cross_entropy))


X, Y = torch.ones(4, 12), torch.zeros(4, dtype=torch.long)


@pytest.mark.parametrize(
    ("given", "step", "words"),
    [
        ({"train": [], "loss": nn.functional.cross_entropy}, Recover(), "no batch to train on"),
        ({"train": [X], "loss": nn.functional.cross_entropy}, Recover(), "train gave Tensor; each batch must be a pair"),
        ({"train": [(X, Y)], "loss": nn.CrossEntropyLoss(reduction="none")}, Recover(teacher=0), "mean over the batch"),
        ({"train": [(X * 1e4, Y)] * 20, "loss": nn.functional.cross_entropy}, Recover(learning_rate=1e30), "diverged"),
    ],
)
def test_training_data_that_make_no_sense_are_refused(given, step, words):
    model = seeded(Mlp)
    before = photograph(model)
    with pytest.raises(TaskError, match=words):
        step(model, Task(model, calibration=[X], **given))
    assert unchanged(model, before)


def test_a_frozen_model_is_told_so():
    model = seeded(Mlp).requires_grad_(False)
    with pytest.raises(TaskError, match="requires_grad=False"):
        Recover()(model, Task(model, calibration=[X]))


def test_a_loss_without_training_data_leaves_the_teacher_alone_to_teach():
    model = seeded(Mlp)
    task = Task(model, calibration=[X], loss=nn.functional.cross_entropy)
    assert Recover(teacher=0.0)(model, task)[1].figures["batches"] == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"epochs": 0}, "epochs=0"),
        ({"epochs": float("inf")}, "epochs=inf"),
        ({"learning_rate": -1.0}, "learning_rate=-1.0"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"teacher": 1.5}, "teacher=1.5"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_at_once(arguments, words):
    with pytest.raises(RangeError, match=words):
        Recover(**arguments)


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (lambda outputs, targets: None, "loss gave NoneType; it must be one number, as a tensor"),
        (lambda outputs, targets: 0.5, "loss gave float; it must be one number, as a tensor"),
        (lambda outputs, targets: outputs.sum().detach(), "does not depend on the outputs"),
        (lambda outputs: outputs.sum(), r"loss fails on outputs and targets \(\d+, 5\) and \(\d+,\): TypeError"),
        (
            lambda outputs, targets: nn.functional.cross_entropy(outputs, nn.functional.one_hot(targets, 5)),
            "loss fails .* RuntimeE",
        ),
    ],
)
@pytest.mark.parametrize("teacher", [0.0, 0.5])
def test_a_loss_that_cannot_be_learned_from_is_refused(loss, words, teacher):
    task = labelled(Mlp)
    with pytest.raises(TaskError, match=words):
        Recover(teacher=teacher)(task.model, Task(task.model, calibration=task.calibration, train=task.train, loss=loss))


def test_a_training_batch_that_does_not_fit_is_named_by_its_number():
    x, y = torch.randn(4, 12), torch.zeros(4, dtype=torch.long)
    task = Task(seeded(Mlp), calibration=[x], train=[(x, y), (x[:, :7], y)], loss=nn.functional.cross_entropy)
    with pytest.raises(TaskError, match=r"the model fails on training batch 2 \(\(4, 7\)\): RuntimeError.*hold inputs alone"):
        Recover()(task.model, task)


class NeedsTargets(Mlp):
    """As detectors do, it asks for more in training."""

    def forward(self, x):
        if self.training:
            raise ValueError("targets should not be none in training")
        return super().forward(x)


def test_what_fails_in_training_alone_is_not_put_down_to_its_inputs():
    task = Task(seeded(NeedsTargets), calibration=[X])
    with pytest.raises(TaskError, match=r"training batch 1 .*ValueError: targets.*; it runs on it in eval mode") as caught:
        Recover()(task.model, task)
    assert "inputs alone" not in str(caught.value)
    broken = seeded(Mlp)
    broken.fc2 = nn.Linear(7, 5)
    task = Task(seeded(Mlp), calibration=[X])
    with pytest.raises(TaskError, match=r"training batch 1 .*; the network it was made from runs on it, so what was done"):
        Recover()(broken, task)


def test_weights_in_half_precision_are_refused_with_what_to_do():
    x = torch.randn(4, 12).half()
    task = Task(seeded(Mlp).half(), calibration=[x])
    with pytest.raises(TaskError, match=r"weight.* is float16, whose range is too small to train in; call model\.float\(\)"):
        Recover()(task.model, task)


class Detector(nn.Module):
    """A box and scores of classes; `shape` is what holds them."""

    def __init__(self, shape=lambda box, scores: (box, scores)):
        super().__init__()
        self.body, self.norm = nn.Linear(12, 32), nn.BatchNorm1d(32)
        self.box, self.scores = nn.Linear(32, 4), nn.Linear(32, 6)
        self.shape = shape

    def forward(self, x):
        h = torch.relu(self.norm(self.body(x)))
        return self.shape(1000 * self.box(h), self.scores(h))


def signal(model, original, x):
    """For each output, the decibels of the original's variance over the error."""
    pairs = zip(output(original, x), output(model, x), strict=True)
    return [10 * float(torch.log10(a.var(0).sum() / (a - b).square().mean(0).sum())) for a, b in pairs]


def test_what_lost_nothing_is_left_as_it_is():
    x = torch.randn(256, 12)
    for kind in (Mlp, lambda: nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 6))):
        task = Task(seeded(kind), calibration=list(x.split(64)), outputs={"*": "classes"} if kind is Mlp else None)
        model, _ = Recover(epochs=20, learning_rate=1e-2)(task.model, task)
        assert torch.allclose(output(model, x), output(task.model, x), atol=1e-4)


def test_all_outputs_are_recovered_however_large_they_are():
    x = torch.randn(512, 12)
    model = seeded(Detector)
    with torch.no_grad():
        model.train()(x)
    task = Task(model.eval(), calibration=list(x.split(64)))
    small, _ = Prune(sparsity=0.6)(task.model, task)
    after, _ = Recover(epochs=30, learning_rate=5e-3)(small, task)
    for before, now in zip(signal(small, task.model, x), signal(after, task.model, x), strict=True):
        assert now > before + 3


@pytest.mark.parametrize(
    ("outputs", "loss", "kinds"),
    [
        (None, None, {"0": "values", "1": "values"}),
        ("classes", None, {"0": "scores", "1": "scores"}),
        ({"1": "classes"}, None, {"0": "values", "1": "scores"}),
        ({"0": "ignore"}, None, {"1": "values"}),
        (None, lambda o, y: nn.functional.cross_entropy(o[1], y) + o[0].square().mean(), {"0": "values", "1": "scores"}),
        (None, lambda o, y: nn.functional.cross_entropy(o[1], y), {"0": "values", "1": "scores"}),
        ({"1": "values"}, lambda o, y: nn.functional.cross_entropy(o[1], y), {"0": "values", "1": "values"}),
        (None, lambda o, y: nn.functional.mse_loss(o[1], nn.functional.one_hot(y, 6).float()), {"0": "values", "1": "values"}),
        (None, lambda o, y: (torch.cdist(o[1], o[1]) * (y[:, None] == y)).mean(), {"0": "values", "1": "values"}),
    ],
    ids=["nothing", "classes", "by-name", "ignored", "both", "one", "said", "squares", "distances"],
)
def test_soft_labels_teach_scores_of_classes_and_nothing_else(outputs, loss, kinds):
    x, y = torch.randn(64, 12), torch.randint(0, 6, (64,))
    task = Task(seeded(Detector).eval(), calibration=[x], outputs=outputs)
    learned = lessons(task, task.model)
    if loss is not None:
        learned = settled(learned, loss, task.model(x), y)
    assert {lesson.name: lesson.kind for lesson in learned} == kinds


@pytest.mark.parametrize(
    ("shape", "loss"),
    [
        (lambda box, scores: {"box": box, "deep": [scores]}, lambda o, y: nn.functional.cross_entropy(o["deep"][0], y)),
        (lambda box, scores: scores, nn.functional.cross_entropy),
        (lambda box, scores: scores[:, :, None, None], lambda o, y: nn.functional.cross_entropy(o, y[:, None, None])),
    ],
    ids=["nested", "alone", "images"],
)
def test_the_loss_tells_scores_of_classes_wherever_they_are(shape, loss):
    x, y = torch.randn(64, 12), torch.randint(0, 6, (64,))
    task = Task(seeded(lambda: Detector(shape)).eval(), calibration=[x])
    learned = settled(lessons(task, task.model), loss, task.model(x), y)
    assert learned[-1].kind == "scores"
    assert all(lesson.kind == "values" for lesson in learned[:-1])


def test_probabilities_are_taught_as_such():
    model = seeded(lambda: nn.Sequential(nn.Linear(12, 6), nn.Softmax(1)))
    x = torch.randn(64, 12)
    task = Task(model, calibration=[x])
    assert [lesson.kind for lesson in lessons(task, model)] == ["probabilities"]
    small, _ = Prune(sparsity=0.6)(model, task)
    after, _ = Recover(epochs=50, learning_rate=1e-2)(small, task)
    wanted = output(model, x)
    before, now = ((wanted * (wanted / output(it, x)).log()).sum(1).mean() for it in (small, after))
    assert now < 0.9 * before


def test_a_last_batch_of_one_sample_does_not_end_the_training():
    x, y = torch.randn(65, 12), torch.randint(0, 6, (65,))
    loss = lambda outputs, targets: nn.functional.cross_entropy(outputs[1], targets)  # noqa: E731
    pairs = list(zip(x.split(32), y.split(32), strict=True))
    task = Task(seeded(Detector), calibration=[x], train=pairs, loss=loss)
    model, record = Recover(epochs=2)(task.model, task)
    assert record.figures["batches"] == 6
    assert [change.what for change in record.skipped] == ["the running statistics of batch norms in 2 of 6 batches"]
    assert int(model.norm.num_batches_tracked) == 4
    assert model.norm.training == task.model.norm.training
    assert not model.norm._forward_pre_hooks
    assert Recover()(task.model, Task(task.model, calibration=[x], train=pairs[:2], loss=loss))[1].skipped == ()


class Reader(nn.Module):
    """Called as model libraries call theirs, with a loss of its own where it is given labels."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 8), nn.Linear(8, 3)

    def forward(self, tokens, labels=None):
        scores = self.head(self.embed(tokens)[:, 0])
        loss = None if labels is None else nn.functional.cross_entropy(scores, labels)
        return {"loss": loss, "scores": scores}


def reader(loss=None, teacher=0.5, keys=("tokens", "labels")):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 20, (64, 5), generator=generator)
    batch = UserDict({"tokens": tokens, "labels": tokens[:, 0] % 3, "more": tokens})
    train = [UserDict({key: batch[key] for key in keys})] * 100
    task = Task(seeded(Reader), calibration=[{"tokens": tokens}], train=train, loss=loss)
    model, record = Recover(learning_rate=1e-2, teacher=teacher)(task.model, task)
    right = (output(model, tokens)["scores"].argmax(1) == tokens[:, 0] % 3).double().mean()
    return float(right), record


@pytest.mark.parametrize("teacher", [0.0, 0.1])
def test_dicts_with_labels_train_by_the_task_s_loss_or_the_model_s_own(teacher):
    own, _ = reader(teacher=teacher)
    given, _ = reader(lambda outputs, labels: nn.functional.cross_entropy(outputs["scores"], labels), teacher=teacher)
    assert own == pytest.approx(given, abs=0.05)
    assert own > 0.8


@pytest.mark.parametrize("kind", [namedtuple("Answer", ["loss", "scores"]), make_dataclass("Answer", ["loss", "scores"])])
def test_a_loss_in_a_record_of_another_kind_trains_as_well(kind):
    class Recorded(Reader):
        def forward(self, tokens, labels=None):
            return kind(**super().forward(tokens, labels))

    tokens = torch.randint(0, 20, (8, 5))
    task = Task(seeded(Recorded), calibration=[{"tokens": tokens}], train=[{"tokens": tokens, "labels": tokens[:, 0] % 3}])
    _, record = Recover(teacher=0.0)(task.model, task)
    assert record.figures["loss_first"] == pytest.approx(float(task.model(tokens, tokens[:, 0] % 3).loss.detach()))


def test_dicts_without_labels_leave_the_teacher_alone_to_teach():
    _, record = reader(keys=("tokens",))
    assert record.figures["loss_first"] == pytest.approx(0, abs=1e-6)


def test_dicts_without_what_a_loss_needs_are_refused():
    with pytest.raises(TaskError, match="a dict of 'tokens' for loss=; each batch must hold 'labels' too"):
        reader(lambda outputs, labels: outputs["scores"].sum(), keys=("tokens",))

    class Silent(Reader):
        def forward(self, tokens, labels=None):
            return super().forward(tokens)

    tokens = torch.randint(0, 20, (4, 5))
    task = Task(Silent(), calibration=[{"tokens": tokens}], train=[{"tokens": tokens, "labels": tokens[:, 0] % 3}])
    with pytest.raises(TaskError, match="the model returns no 'loss' for them; give loss="):
        Recover()(task.model, task)


def test_outputs_that_differ_in_training_are_taught_in_their_order():
    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.main, self.aside = nn.Linear(12, 5), nn.Linear(12, 5)

        def forward(self, x):
            return (self.main(x), self.aside(x)) if self.training else self.main(x)

    x = torch.randn(64, 12)
    task = Task(seeded(Deep), calibration=[x])
    small, _ = Prune(sparsity=0.5)(task.model, task)
    after, _ = Recover(epochs=50, learning_rate=1e-2)(small, task)
    assert not torch.equal(after.main.weight, small.main.weight)
    assert torch.equal(after.aside.weight, small.aside.weight)


def certain(outputs, targets):
    """A loss of one's own with an error of one's own."""
    if not bool(((outputs >= 0) & (outputs <= 1)).all()):
        raise LookupError("no probabilities")
    return (outputs - targets).square().mean()


@pytest.mark.parametrize("loss", [nn.functional.binary_cross_entropy, certain])
def test_a_loss_that_takes_probabilities_alone_teaches_as_it_does(loss):
    x = torch.randn(64, 12)
    network = seeded(lambda: nn.Sequential(nn.Linear(12, 6), nn.Sigmoid()))
    task = Task(network, calibration=[x], train=[(x, torch.rand(64, 6))], loss=loss)
    assert [lesson.kind for lesson in settled(lessons(task, network), loss, output(network, x), torch.rand(64, 6))] == ["values"]
    assert Recover()(network, task)[1].figures["batches"] == 1


def test_the_question_what_outputs_are_leaves_them_as_they_are():
    class Kept(MutableMapping):
        def __init__(self, **given):
            self.inner = given

        def __getitem__(self, key):
            return self.inner[key]

        def __setitem__(self, key, value):
            self.inner[key] = value

        def __delitem__(self, key):
            del self.inner[key]

        def __iter__(self):
            return iter(self.inner)

        def __len__(self):
            return len(self.inner)

    x, targets, seen = torch.randn(64, 12), torch.randint(0, 6, (64,)), []

    def loss(outputs, targets):
        seen.append(type(outputs))
        return nn.functional.cross_entropy(outputs["scores"], targets)

    model = seeded(lambda: Detector(shape=lambda box, scores: Kept(box=box, scores=scores)))
    task = Task(model, calibration=[x], train=[(x, targets)], loss=loss)
    outputs = model(x)
    before = dict(outputs)
    found = settled(lessons(task, model), loss, outputs, targets)
    assert {lesson.name: lesson.kind for lesson in found} == {"box": "values", "scores": "scores"}
    assert all(outputs[name] is tensor for name, tensor in before.items())
    assert set(seen) == {Kept}


def test_a_network_of_codes_alone_can_be_trained():
    x = torch.randn(64, 12)
    coded, _ = Quantize(8, biases=8)(seeded(Mlp), Task(seeded(Mlp), calibration=[x]))
    assert not list(coded.parameters())
    trained, record = Recover(epochs=2)(
        coded, Task(coded, calibration=[x], train=[(x, torch.randint(0, 5, (64,)))], loss=nn.functional.cross_entropy)
    )
    assert record.figures["batches"] == 2
    assert not torch.equal(output(trained, x), output(coded, x))


def test_the_record_says_what_became_of_each_weight_and_what_was_left():
    class Held(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head, self.table = nn.Linear(12, 8), nn.Linear(8, 5), nn.Parameter(torch.randn(8, 8))

        def forward(self, x):
            return self.head(torch.relu(self.body(x) @ self.table))

    x = torch.randn(16, 12)
    task = Task(seeded(Held), calibration=[x], train=[(x, torch.arange(16) % 5)] * 10, loss=nn.functional.cross_entropy)
    model, record = Recover(during=[Prune(0.5), Quantize(3, layers="head")])(task.model, task)
    values = {weight.key: weight.read() for weight in sites(model)}
    zeros = {key: int((each == 0).sum()) for key, each in values.items()}
    assert [(change.path, change.what) for change in record.changes[1:]] == [
        ("body.weight", f"{zeros['body.weight'] / 96:.1%} zeros"),
        ("head.weight", f"{zeros['head.weight'] / 40:.1%} zeros, codes of 3 bits"),
    ]
    assert record.figures["sparsity"] == sum(zeros.values()) / 136
    assert record.figures["weights"] == 136
    assert [change.path for change in record.skipped] == ["table"]
    assert len(Recover()(task.model, task)[1].changes) == 1
