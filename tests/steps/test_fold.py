import pytest
import torch
from torch import nn

from enxuto.artifact.save import load, save
from enxuto.errors import NothingChangedError
from enxuto.steps.fold import Fold
from enxuto.steps.quantize import Quantize
from enxuto.steps.recover import Recover
from enxuto.steps.share import Share
from enxuto.task import Task
from toys import ResidualCnn, inputs, output, photograph, seeded, task_of, unchanged


def stack(*layers):
    return seeded(lambda: nn.Sequential(*layers))


PAIRS = {
    "Linear": (lambda: stack(nn.Linear(6, 8), nn.BatchNorm1d(8)), (5, 6)),
    "Linear without bias": (lambda: stack(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8)), (5, 6)),
    "Conv1d": (lambda: stack(nn.Conv1d(4, 8, 3), nn.BatchNorm1d(8)), (2, 4, 7)),
    "Conv2d": (lambda: stack(nn.Conv2d(4, 8, 3, bias=False), nn.BatchNorm2d(8)), (2, 4, 7, 7)),
    "Conv2d in groups": (lambda: stack(nn.Conv2d(4, 8, 3, groups=2), nn.BatchNorm2d(8)), (2, 4, 7, 7)),
    "Conv3d": (lambda: stack(nn.Conv3d(4, 8, 2), nn.BatchNorm3d(8)), (2, 4, 3, 3, 3)),
    "ConvTranspose1d": (lambda: stack(nn.ConvTranspose1d(4, 8, 3), nn.BatchNorm1d(8)), (2, 4, 7)),
    "ConvTranspose2d": (lambda: stack(nn.ConvTranspose2d(4, 6, 3, stride=2), nn.BatchNorm2d(6)), (2, 4, 5, 5)),
    "ConvTranspose2d square": (lambda: stack(nn.ConvTranspose2d(4, 4, 3), nn.BatchNorm2d(4)), (2, 4, 5, 5)),
    "ConvTranspose2d in groups": (lambda: stack(nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)), (2, 4, 5, 5)),
    "without gain and shift": (lambda: stack(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8, affine=False)), (2, 4, 7, 7)),
    "behind a dropout": (lambda: stack(nn.Linear(6, 8), nn.Dropout(0.5), nn.BatchNorm1d(8)), (5, 6)),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_a_norm_behind_a_layer_disappears_and_the_outputs_stay(pair):
    make, shape = PAIRS[pair]
    model, x = make(), torch.randn(shape)
    task = Task(model, calibration=[x])
    before = photograph(model)
    folded, record = Fold()(model, task)
    assert isinstance(folded[-1], nn.Identity)
    assert len(record.changes) == 1
    assert torch.allclose(output(folded, x), output(model, x), atol=1e-5)
    assert unchanged(model, before)


def test_all_norms_of_a_residual_network_fold_in_training_mode_too():
    task, x = task_of(ResidualCnn), inputs(ResidualCnn)
    expected = output(task.model, x)
    task.model.train()
    before = photograph(task.model)
    folded, record = Fold()(task.model, task)
    assert unchanged(task.model, before)
    assert [change.what for change in record.changes] == [f"folded into conv{i}" for i in (1, 2, 3)]
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert torch.allclose(output(folded.eval(), x), expected, atol=1e-5)
    _, record = Fold(layers="bn2")(task.model, task)
    assert [change.path for change in record.changes] == ["bn2"]


class Net(nn.Module):
    """A convolution, a norm, and a forward given as a function of both."""

    def __init__(self, forward, conv=None, norm=None, relu=None):
        super().__init__()
        self.conv, self.norm = conv or nn.Conv2d(4, 4, 3, padding=1), norm or nn.BatchNorm2d(4)
        self.relu, self.wanted = relu or nn.ReLU(), forward

    def forward(self, x):
        return self.wanted(self, x)


def twice(m, x):
    y = m.conv(x)
    return m.norm(y) + y


def in_place(m, x):
    y = m.conv(x)
    y += 1
    return m.norm(y)


class Standardized(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(x, self.weight / self.weight.norm(), self.bias)


class Louder(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x) * 2


REFUSED = {
    "a norm before its layer": (lambda m, x: m.conv(m.norm(x)), {}, "does not directly follow"),
    "an activation between": (lambda m, x: m.norm(m.relu(m.conv(x))), {}, "does not directly follow"),
    "an activation in place": (
        lambda m, x: m.norm(m.relu(m.conv(x))),
        {"relu": nn.ReLU(inplace=True)},
        "does not directly follow",
    ),
    "a sum in place": (in_place, {}, "does not directly follow"),
    "an output read twice": (twice, {}, "also read elsewhere"),
    "a layer called twice": (lambda m, x: m.norm(m.conv(m.conv(x))), {}, "called more than once"),
    "a norm called twice": (lambda m, x: m.norm(m.norm(m.conv(x))), {}, "does not directly follow"),
    "no statistics": (
        lambda m, x: m.norm(m.conv(x)),
        {"norm": nn.BatchNorm2d(4, track_running_stats=False)},
        "no running statistics",
    ),
    "a layer with a forward of its own": (
        lambda m, x: m.norm(m.conv(x)),
        {"conv": Standardized(4, 4, 3)},
        "Standardized has a forward of its own, which is not what a folded layer computes",
    ),
    "a norm with a forward of its own": (lambda m, x: m.norm(m.conv(x)), {"norm": Louder(4)}, "forward of its own"),
    "a computed weight": (
        lambda m, x: m.norm(m.conv(x)),
        {"conv": nn.utils.parametrize.register_parametrization(nn.Conv2d(4, 4, 3), "weight", nn.Identity())},
        "the weight of ParametrizedConv2d is computed from other parameters",
    ),
    "a norm that never ran": (lambda m, x: m.conv(x), {}, "does not directly follow"),
    "another axis": (
        lambda m, x: m.norm(m.conv(x.flatten(2).transpose(1, 2)[:, :4])),
        {"conv": nn.Linear(4, 4), "norm": nn.BatchNorm1d(4)},
        "does not directly follow",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_norm_that_cannot_be_folded_is_named_with_the_reason(case):
    forward, parts, words = REFUSED[case]
    model = seeded(lambda: Net(forward, **parts))
    task = Task(model, calibration=[torch.randn(2, 4, 6, 6)])
    before = photograph(model)
    with pytest.raises(NothingChangedError, match=rf"'norm': .*{words}"):
        Fold()(model, task)
    assert unchanged(model, before)


def test_a_reader_that_autograd_does_not_see_is_not_overlooked():
    def forward(m, x):
        y = m.conv(x)
        return m.norm(y) + y.detach()

    model, x = seeded(lambda: nn.Sequential(Net(forward), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))), torch.randn(2, 4, 6, 6)
    folded, record = Fold()(model, Task(model, calibration=[x]))
    assert [(c.path, c.why) for c in record.skipped] == [("0.norm", "the outputs of the model would change")]
    assert [c.path for c in record.changes] == ["2"]
    assert torch.allclose(output(folded, x), output(model, x), atol=1e-5)


class Same(nn.Conv2d):
    """Padded as others do it, by a forward of its own that is a convolution all the same."""

    def forward(self, x):
        padded = nn.functional.pad(x, (0, 1, 0, 1))
        return nn.functional.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Saturating(nn.Conv2d):
    """A convolution for inputs of ordinary size, and no longer one for large ones."""

    def forward(self, x):
        return super().forward(x).clamp(-50, 50)


class Blind(nn.Conv2d):
    """A convolution that never reads its bias, which folding would need."""

    def forward(self, x):
        return self._conv_forward(x, self.weight, None)


class PlainConv(nn.Conv2d):
    pass


class PlainNorm(nn.BatchNorm2d):
    pass


@pytest.mark.parametrize("conv", [Same, PlainConv, nn.Conv2d])
@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.SyncBatchNorm, PlainNorm])
def test_subclasses_fold_where_their_forward_is_that_of_a_convolution(conv, norm, tmp_path):
    model, x = stack(conv(3, 8, 3, bias=False), norm(8), nn.ReLU()), torch.randn(4, 3, 16, 16)
    task = Task(model, calibration=[x])
    before = photograph(model)
    for start in (model, Quantize(8)(model, task)[0]):
        folded, record = Fold()(start, task)
        assert [change.what for change in record.changes] == ["folded into 0"]
        assert torch.allclose(output(folded, x), output(start, x), atol=2e-5)
        save(folded, tmp_path / "m.nxt", original=model)
        assert torch.equal(output(load(tmp_path / "m.nxt", into=model), x), output(folded, x))
    assert unchanged(model, before)


@pytest.mark.parametrize("conv", [Saturating, Blind])
def test_a_forward_that_is_that_of_a_convolution_only_here_is_refused(conv):
    model = stack(conv(3, 8, 3, bias=False), nn.BatchNorm2d(8))
    with pytest.raises(NothingChangedError, match=rf"'1': {conv.__name__} has a forward of its own, which is not what"):
        Fold()(model, Task(model, calibration=[torch.randn(4, 3, 16, 16)]))


def test_a_norm_that_the_forward_asks_something_stays_and_the_others_fold():
    def forward(m, x):
        y = m.norm(m.conv(x))
        return y.view(-1, m.norm.num_features, *y.shape[2:])

    model, x = seeded(lambda: nn.Sequential(Net(forward), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))), torch.randn(2, 4, 6, 6)
    folded, record = Fold()(model, Task(model, calibration=[x]))
    assert [c.path for c in record.changes] == ["2"]
    assert [c.path for c in record.skipped] == ["0.norm"]
    assert "the model reads what is gone with the norm (AttributeError: 'Identity' object has no" in record.skipped[0].why
    assert torch.allclose(output(folded, x), output(model, x), atol=1e-5)


def test_a_functional_batch_norm_is_left_alone():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3)
            self.register_buffer("mean", torch.randn(4))

        def forward(self, x):
            return nn.functional.batch_norm(self.conv(x), self.mean, torch.ones(4))

    model = Functional()
    with pytest.raises(NothingChangedError, match="no batch norm"):
        Fold()(model, Task(model, calibration=[torch.randn(2, 4, 6, 6)]))


@pytest.mark.parametrize(
    "step", [Quantize(8), Quantize(3, per="tensor"), Quantize(1), Quantize(4, "fc"), Quantize(8, activations=8)], ids=str
)
def test_a_coded_layer_keeps_its_codes_and_the_model_its_outputs(step):
    task, x = task_of(ResidualCnn), inputs(ResidualCnn)
    with torch.no_grad():
        task.model.bn2.weight[1] *= -1
        if step.bits > 1:
            task.model.bn2.weight[3] = 0
    coded, _ = step(task.model, task)
    folded, record = Fold()(coded, task)
    assert len(record.changes) == 3
    assert torch.allclose(output(folded, x), output(coded, x), atol=2e-5)
    if step.layers == "*":
        changed = folded.conv1.coded["weight"].signed() != coded.conv1.coded["weight"].signed()
        assert not bool(changed.any())


def test_grouped_scales_stay_within_their_eight_bits():
    task, x = task_of(ResidualCnn), inputs(ResidualCnn)
    coded, _ = Quantize(4, ["conv2", "conv3"], per="group", group=9)(task.model, task)
    folded, _ = Fold()(coded, task)
    assert torch.allclose(output(folded, x), output(coded, x), rtol=2e-2, atol=1e-2)
    assert torch.equal(folded.conv2.coded["weight"].integers(), coded.conv2.coded["weight"].integers())


def test_coded_biases_and_norms_fold_exactly_into_float_biases():
    task, x = task_of(ResidualCnn), inputs(ResidualCnn)
    coded, _ = Quantize(8, biases=8)(task.model, task)
    folded, _ = Fold()(coded, task)
    assert torch.allclose(output(folded, x), output(coded, x), atol=2e-5)
    assert isinstance(folded.conv1.bias, nn.Parameter)


@pytest.mark.parametrize(
    ("model", "step", "words"),
    [
        (stack(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)), Share(3), "fold first, then share"),
        (stack(nn.ConvTranspose2d(4, 4, 3), nn.BatchNorm2d(4)), Quantize(4), "fold first, then quantize"),
    ],
    ids=["shared values", "a transposed convolution"],
)
def test_codes_that_could_not_stay_are_not_folded(model, step, words):
    task = Task(model, calibration=[torch.randn(2, 4, 6, 6)])
    coded, _ = step(model, task)
    before = photograph(coded)
    with pytest.raises(NothingChangedError, match=words):
        Fold()(coded, task)
    assert unchanged(coded, before)


def test_a_model_without_norms_says_so():
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(NothingChangedError, match="the model has no batch norm"):
        Fold()(model, Task(model, calibration=[torch.randn(2, 4)]))


@pytest.mark.parametrize("batch", [(torch.randn(2, 4, 6, 6),), {"x": torch.randn(2, 4, 6, 6)}], ids=["a tuple", "a dict"])
def test_samples_may_be_tuples_and_dicts(batch):
    model = seeded(lambda: Net(lambda m, x: m.norm(m.conv(x))))
    folded, _ = Fold()(model, Task(model, calibration=[batch]))
    assert isinstance(folded.norm, nn.Identity)


def test_a_frozen_model_of_tokens_folds_as_well():
    model = seeded(lambda: nn.Sequential(nn.Embedding(9, 6), nn.Flatten(), nn.Linear(18, 8), nn.BatchNorm1d(8))).requires_grad_(
        False
    )
    x = torch.arange(6).view(2, 3)
    folded, _ = Fold()(model, Task(model, calibration=[x]))
    assert torch.allclose(output(folded, x), output(model, x), atol=1e-5)


class ByName(nn.Module):
    """Calls its layers as some networks are written: inputs by their names."""

    def __init__(self):
        super().__init__()
        self.fc, self.norm, self.head = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(input=torch.relu(self.norm(input=self.fc(input=x))))


def test_layers_that_are_called_by_name_are_treated_like_others():
    x = torch.randn(16, 6)
    model = seeded(ByName)
    task = Task(model, calibration=[x])
    folded, _ = Fold()(model, task)
    assert isinstance(folded.norm, nn.Identity)
    assert torch.allclose(output(folded, x), output(model, x), atol=1e-5)
    coded, record = Quantize(8, activations=8)(folded, task)
    assert not [change.path for change in record.skipped]
    assert torch.allclose(output(coded, x), output(model, x), atol=0.05)
    assert not torch.equal(output(coded, x), output(Quantize(8)(folded, task)[0], x))
    _, record = Recover()(model, Task(model, calibration=[x[:1]]))
    assert "batch norms in 1 of 1 batches" in record.skipped[0].what


def test_outputs_that_are_masked_in_both_are_the_same():
    class Masked(ByName):
        def forward(self, x):
            y = super().forward(x)
            return y, y.masked_fill(x[:, :3] > 0, float("-inf"))

    x = torch.randn(16, 6)
    model = seeded(Masked)
    _, record = Fold()(model, Task(model, calibration=[x]))
    assert [change.path for change in record.changes] == ["norm"]
