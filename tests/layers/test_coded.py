import copy
import pickle
import warnings

import cloudpickle
import pytest
import torch
from torch import nn

from enxuto.layers import Affine, Table, code_, decode_, weight_names
from enxuto.layers.activations import ActivationGrid
from enxuto.layers.coded import Coded, coded_class, plain_class
from enxuto.sites import sites
from enxuto.surgery import duplicate, to_float

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")


class Standardized(nn.Conv2d):
    """A subclass with a forward of its own, which must not be lost."""

    def forward(self, x):
        weight = self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight, self.bias) * 2


class Named(nn.LSTM):
    """A recurrent layer with a parameter of its own."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.gain = nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        return super().forward(x)[0] * self.gain


def image(*size):
    return lambda: (torch.randn(2, 4, *size),)


def tokens():
    return (torch.randint(0, 9, (3, 5)),)


def sequence():
    return (torch.randn(3, 6, 4),)


LAYERS = {
    "Linear": (lambda: nn.Linear(4, 6), lambda: (torch.randn(3, 4),)),
    "Linear without bias": (lambda: nn.Linear(4, 6, bias=False), lambda: (torch.randn(3, 4),)),
    "Bilinear": (lambda: nn.Bilinear(4, 3, 6), lambda: (torch.randn(2, 4), torch.randn(2, 3))),
    "Conv1d": (lambda: nn.Conv1d(4, 6, 3, padding="same"), image(9)),
    "Conv2d": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding_mode="reflect", padding=1), image(9, 9)),
    "Conv2d depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4), image(9, 9)),
    "Conv3d": (lambda: nn.Conv3d(4, 6, 2), image(4, 4, 4)),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(4, 6, 3), image(5)),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2, stride=2), image(5, 5)),
    "ConvTranspose3d": (lambda: nn.ConvTranspose3d(4, 6, 2), image(3, 3, 3)),
    "Conv2d with its own forward": (lambda: Standardized(4, 6, 3), image(9, 9)),
    "Embedding": (lambda: nn.Embedding(9, 4, padding_idx=2), tokens),
    "Embedding with max_norm": (lambda: nn.Embedding(9, 4, max_norm=0.5), tokens),
    "EmbeddingBag": (lambda: nn.EmbeddingBag(9, 4, mode="sum"), tokens),
    "LSTM": (lambda: nn.LSTM(4, 5, num_layers=2, bidirectional=True, batch_first=True), sequence),
    "LSTM with projections": (lambda: nn.LSTM(4, 5, proj_size=3, batch_first=True, bias=False), sequence),
    "LSTM with its own forward": (lambda: Named(4, 5, batch_first=True), sequence),
    "GRU": (lambda: nn.GRU(4, 5, num_layers=2, batch_first=True), sequence),
    "RNN": (lambda: nn.RNN(4, 5, nonlinearity="relu", batch_first=True), sequence),
    "LSTMCell": (lambda: nn.LSTMCell(4, 5), lambda: (torch.randn(3, 4),)),
    "GRUCell": (lambda: nn.GRUCell(4, 5), lambda: (torch.randn(3, 4),)),
    "RNNCell": (lambda: nn.RNNCell(4, 5), lambda: (torch.randn(3, 4),)),
    "MultiheadAttention": (lambda: nn.MultiheadAttention(4, 2, batch_first=True), lambda: (torch.randn(2, 5, 4),) * 3),
    "MultiheadAttention of several sizes": (
        lambda: nn.MultiheadAttention(4, 2, kdim=3, vdim=5, batch_first=True),
        lambda: (torch.randn(2, 5, 4), torch.randn(2, 6, 3), torch.randn(2, 6, 5)),
    ),
    "TransformerEncoderLayer": (lambda: nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True), sequence),
    "TransformerEncoder": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True), 2),
        sequence,
    ),
    "TransformerDecoderLayer": (
        lambda: nn.TransformerDecoderLayer(4, 2, 8, dropout=0.0, batch_first=True),
        lambda: (torch.randn(3, 6, 4), torch.randn(3, 6, 4)),
    ),
}
GRIDS = [Affine(8), Affine(3, "tensor"), Table(3)]


def tensors(value):
    return [value] if isinstance(value, torch.Tensor) else [t for item in value if item is not None for t in tensors(item)]


def run(layer, given):
    return tensors(layer(*given))


def equal(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def coded(make, grid):
    layer = make().eval()
    for weight in sites(layer):
        weight.code_(grid.encode(weight.read(), weight.path))
    return layer


def reference(layer, make):
    """A plain layer of the same kind, filled by hand with the decoded weights."""
    plain = make().eval()
    values = {
        name.replace("coded.", ""): t
        for name, t in layer.state_dict().items()
        if not name.endswith(("codes", "scale", "codebook"))
    }
    for weight in sites(layer):
        values[weight.key] = weight.read()
    plain.load_state_dict(values)
    for weight in sites(plain):
        weight.tensor.requires_grad_(False)  # else torch may take another kernel, with other last bits
    return plain


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("gradients", [False, True])
def test_a_coded_layer_gives_what_the_plain_one_gives_with_decoded_weights(kind, grid, gradients):
    make, given = LAYERS[kind]
    layer, x = coded(make, grid), given()
    with torch.set_grad_enabled(gradients):  # without gradients torch takes its fused attention
        assert equal(run(layer, x), run(reference(layer, make), x))
        assert not equal(run(layer, x), run(make().eval(), x))


@pytest.mark.parametrize("kind", LAYERS)
def test_copies_pickles_and_state_dicts_give_the_same_outputs(kind, tmp_path):
    make, given = LAYERS[kind]
    layer, x = coded(make, Affine(4)), given()
    expected = run(layer, x)
    torch.save(layer.state_dict(), tmp_path / "state.pt")
    torch.save(layer, tmp_path / "whole.pt")
    other = coded(make, Affine(4))
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    again = [
        duplicate(layer),
        copy.copy(layer),
        pickle.loads(pickle.dumps(layer)),
        cloudpickle.loads(cloudpickle.dumps(layer)),
        torch.load(tmp_path / "whole.pt", weights_only=False),
        other,
    ]
    for copied in again:
        assert equal(run(copied, x), expected)
        assert type(copied) is type(layer)
        assert not set(layer.state_dict()) ^ set(copied.state_dict())


@pytest.mark.parametrize("kind", LAYERS)
def test_training_mode_and_gradients_reach_what_is_still_plain(kind):
    make, given = LAYERS[kind]
    layer, x = duplicate(coded(make, Affine(4))).train(), given()
    before = run(layer, x)
    assert equal(before, run(reference(layer, make).train(), x))
    if list(layer.parameters()):
        sum(t.sum() for t in before).backward()
        assert any(parameter.grad is not None for parameter in layer.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_model_changes_dtype_as_a_whole(kind, dtype):
    make, given = LAYERS[kind]
    layer = coded(make, Affine(8))
    expected = reference(layer, make).to(dtype)
    x = tuple(t.to(dtype) if t.is_floating_point() else t for t in given())
    with torch.no_grad():
        assert equal(run(layer.to(dtype), x), run(expected, x))


@pytest.mark.parametrize("kind", LAYERS)
def test_decoding_gives_back_the_plain_class_with_all_its_parameters(kind):
    make, given = LAYERS[kind]
    layer, x = coded(make, Affine(4)), given()
    plain = to_float(layer).requires_grad_(False)
    assert [type(m) for m in plain.modules()] == [type(m) for m in make().modules()]
    assert list(plain.state_dict()) == list(make().state_dict())
    assert equal(run(plain, x), run(layer.requires_grad_(False), x))
    plain.load_state_dict(make().state_dict())


def test_weight_names_are_the_weights_and_not_the_biases():
    lstm = nn.LSTM(2, 3, num_layers=2, bidirectional=True, proj_size=2)
    assert len(weight_names(lstm)) == 12
    assert all(name.startswith("weight_") for name in weight_names(lstm))
    assert weight_names(nn.MultiheadAttention(4, 2, kdim=3)) == ("q_proj_weight", "k_proj_weight", "v_proj_weight")
    assert weight_names(nn.BatchNorm2d(3)) == weight_names(nn.LayerNorm(3)) == weight_names(nn.ReLU()) == ()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that it initialises nothing
        assert weight_names(nn.Linear(0, 3)) == ()


def test_a_coded_layer_prints_as_what_it_is():
    shown = repr(coded(lambda: nn.Sequential(nn.Linear(4, 6)), Affine(4)))
    assert "CodedLinear(" in shown
    assert "in_features=4, out_features=6" in shown
    assert "bits=4" in shown
    assert "CodedLSTM(\n  4, 5" in repr(coded(lambda: nn.LSTM(4, 5), Table(3)))


def test_a_coded_weight_cannot_be_assigned_and_is_no_parameter():
    layer = coded(lambda: nn.Linear(4, 6), Affine(4))
    with pytest.raises(AttributeError, match="coded and read-only"):
        layer.weight = nn.Parameter(torch.zeros(6, 4))
    assert [name for name, _ in layer.named_parameters()] == ["bias"]
    assert not layer.weight.requires_grad
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = layer.nothing


def test_coded_layers_are_physically_small_and_their_state_is_plain_tensors():
    layer = coded(lambda: nn.Linear(256, 64, bias=False), Affine(4))
    assert sum(t.numel() * t.element_size() for t in layer.state_dict().values()) == 256 * 64 // 2 + 64 * 4
    assert set(layer.state_dict()) == {"coded.weight.codes", "coded.weight.scale"}


def test_coded_classes_are_one_per_class_and_remain_instances_of_it():
    layer = coded(lambda: nn.Linear(4, 6), Affine(4))
    assert isinstance(layer, nn.Linear)
    assert isinstance(layer, Coded)
    assert type(layer) is coded_class(nn.Linear)
    assert plain_class(type(layer)) is plain_class(nn.Linear) is nn.Linear
    code_(layer, "bias", Affine(8, "tensor").encode(layer.bias))
    assert type(layer) is coded_class(nn.Linear)
    decode_(layer)
    decode_(layer)
    assert type(layer) is nn.Linear


def test_an_input_grid_rounds_what_the_layer_reads():
    layer = coded(lambda: nn.Linear(4, 6), Affine(8))
    x = torch.rand(3, 4)
    free = layer(x)
    layer.input_grid = ActivationGrid(0.25, 0)
    assert torch.equal(layer(x), reference_of(layer)((x / 0.25).round() * 0.25))
    assert not torch.equal(layer(x), free)
    assert torch.equal(duplicate(layer)(x), layer(x))
    double = duplicate(layer).double()
    assert torch.allclose(double(x.double()), layer(x).double(), atol=1e-5)
    half = duplicate(layer).bfloat16()
    assert half(x.bfloat16()).dtype == torch.bfloat16
    assert torch.allclose(half(x.bfloat16()).float(), layer(x), atol=0.1)


def reference_of(layer):
    plain = nn.Linear(layer.in_features, layer.out_features)
    plain.load_state_dict({"weight": layer.weight, "bias": layer.bias})
    return plain.requires_grad_(False)


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def test_a_parametrized_weight_is_left_alone_and_named():
    from enxuto.sites import left_in_float

    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))
    nn.utils.parametrize.register_parametrization(model[0], "weight", Doubled())
    assert [weight.path for weight in sites(model)] == ["1"]
    (change,) = left_in_float(model)
    assert change.path == "0.weight"
    assert "Doubled computes it from other parameters" in change.why
