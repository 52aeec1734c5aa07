import onnx
import pytest
import torch
from torch import nn

import enxuto as ex
from enxuto import zoo
from enxuto.errors import NothingChangedError, RangeError, ShapeError
from enxuto.layers import ActivationGrid, AffineTensor, TableTensor
from enxuto.layers.affine import Affine
from enxuto.sites import sites
from enxuto.sizes import module_bytes
from enxuto.steps.prune import Prune
from enxuto.steps.quantize import Quantize
from enxuto.steps.recover import Recover
from enxuto.steps.share import Share
from enxuto.task import Task
from toys import Block, Mlp, ResidualCnn, Tied, inputs, output, photograph, seeded, task_of, unchanged


@pytest.mark.parametrize("kind", [Mlp, ResidualCnn, Block])
@pytest.mark.parametrize(
    "step",
    [Quantize(8), Quantize(8, per="tensor"), Quantize(8, per="network"), Quantize(8, "fc*", per="group", group=4)],
    ids=str,
)
def test_eight_bits_hardly_change_the_outputs_and_make_the_model_small(kind, step):
    task, x = task_of(kind), inputs(kind)
    model, record = step(task.model, task)
    before, after = output(task.model, x), output(model, x)
    assert float((after - before).norm() / before.norm()) < 0.03
    assert module_bytes(model) < module_bytes(task.model)
    assert {change.path for change in record.changes} == {weight.key for weight in sites(task.model, step.layers)}


@pytest.mark.parametrize("bits", range(1, 8))
def test_fewer_bits_are_fewer_values_and_fewer_bytes(bits):
    task = task_of(Mlp)
    model, _ = Quantize(bits, per="tensor")(task.model, task)
    for weight in sites(model):
        assert len(weight.read().unique()) <= 2**bits
    assert module_bytes(model) <= module_bytes(Quantize(bits + 1, per="tensor")(task.model, task)[0])


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("per", ["tensor", "channel", "group", "network"])
@pytest.mark.parametrize("coder", [Quantize, Share])
def test_a_pruned_weight_stays_zero_after_coding(coder, bits, per):
    task = task_of(Mlp)
    pruned, _ = Prune(sparsity=0.7)(task.model, task)
    more = {"group": 4} if per == "group" else {}
    step = coder(bits, per=per, **more) if coder is Quantize else coder(bits)
    model, _ = step(pruned, task)
    for before, after in zip(sites(pruned), sites(model), strict=True):
        assert bool((after.read()[before.read() == 0] == 0).all())


def test_one_bit_refuses_a_pruned_model_and_sharing_two_values_keeps_its_zeros():
    task = task_of(Mlp)
    pruned, _ = Prune(sparsity=0.7)(task.model, task)
    before = photograph(pruned)
    with pytest.raises(ShapeError, match=r"bits=1 has no code for zero.*'fc1'.*bits=2"):
        Quantize(1)(pruned, task)
    assert unchanged(pruned, before)
    model, _ = Share(1)(pruned, task)
    for zeroed, after in zip(sites(pruned), sites(model), strict=True):
        assert bool((after.read()[zeroed.read() == 0] == 0).all())
        assert len(after.read().unique()) == 2


@pytest.mark.parametrize("kind", [Mlp, ResidualCnn, Block])
def test_the_model_that_is_given_is_left_as_it_was_also_when_the_step_refuses(kind):
    task = task_of(kind)
    task.model.train()
    before = photograph(task.model)
    Quantize(8, activations=8, biases=8)(task.model, task)
    assert unchanged(task.model, before)
    pruned, _ = Prune(0.5)(task.model, task)
    zeros = photograph(pruned)
    with pytest.raises(ShapeError, match="bits=1 has no code for zero"):
        Quantize(1)(pruned, task)
    assert unchanged(pruned, zeros)


@pytest.mark.parametrize(
    "step",
    [
        Quantize(4),
        Quantize(8, per="tensor"),
        Quantize(1),
        Quantize(5, per="network", fit="absmax"),
        Quantize(3, "fc", per="group", group=4),
    ],
    ids=str,
)
def test_quantizing_twice_is_quantizing_once(step):
    task = task_of(ResidualCnn)
    once, _ = step(task.model, task)
    twice, _ = step(once, task)
    for a, b in zip(sites(once), sites(twice), strict=True):
        assert torch.equal(a.read(), b.read())


@pytest.mark.parametrize("fit", ["absmax", "mse"])
@pytest.mark.parametrize("bits", [1, 4, 8])
def test_a_network_on_one_scale_is_that_of_all_its_weights_as_one(bits, fit):
    task = task_of(ResidualCnn)
    model, _ = Quantize(bits, per="network", fit=fit)(task.model, task)
    together = torch.cat([weight.read().flatten() for weight in sites(task.model)])
    alone = Affine(bits, "tensor", fit=fit).encode(together)
    found = torch.cat([weight.read().flatten() for weight in sites(model)])
    assert torch.equal(found, alone())


def test_activations_are_calibrated_on_what_the_layers_read():
    task = task_of(ResidualCnn)
    model, record = Quantize(8, activations=8)(task.model, task)
    x = task.calibration[0]
    grid = model.conv1.input_grid
    assert isinstance(grid, ActivationGrid)
    low, high = float(x.min()), float(x.max())
    assert float(grid.scale) == pytest.approx((high - low) / 255, rel=1e-5)
    assert float(model.conv2.input_grid.zero_point) == 0  # behind a relu
    assert sum(change.what == "input in 8 bits" for change in record.changes) == 4
    assert float((output(model, x) - output(task.model, x)).norm() / output(task.model, x).norm()) < 0.05


def test_inputs_that_no_grid_rounds_are_named():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.rnn, self.spare = nn.Embedding(9, 16), nn.GRU(16, 16, batch_first=True), nn.Linear(3, 3)
            self.block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)

        def forward(self, tokens):
            return self.block(self.rnn(self.words(tokens))[0])

    task = Task(Mixed().eval(), calibration=[torch.randint(0, 9, (2, 5))])
    _, record = Quantize(8, activations=8)(task.model, task)
    gridded = {change.path for change in record.changes if change.what == "input in 8 bits"}
    left = {change.path: change.why for change in record.skipped if change.what == "input left in float"}
    assert gridded == {"block.linear1", "block.linear2"}
    assert set(left) == {"rnn", "spare", "block.self_attn", "block.self_attn.out_proj"}
    assert "attention reads its weight directly" in left["block.self_attn.out_proj"]
    assert "this is MultiheadAttention" in left["block.self_attn"]
    assert "this is GRU" in left["rnn"]
    assert "do not reach it" in left["spare"]
    _, record = Quantize(8)(task.model, task)
    assert not record.skipped


def test_what_attention_multiplies_is_told_with_its_range_and_rounded_in_the_int8_file(tmp_path):
    task, x = task_of(Block), inputs(Block)
    small, record = Quantize(7, activations=8)(task.model, task)
    why = {change.path: change.why for change in record.skipped}
    y = task.model.norm1(task.model.embed(x)).detach()
    assert f"in_proj_weight multiplies was seen from {float(y.min()):.3g} to {float(y.max()):.3g}" in why["attention"]
    assert "weight multiplies was seen from" in why["attention.out_proj"]
    ex.export(small, tmp_path / "m.onnx", calibration=[x], precision="int8")
    graph = onnx.load(tmp_path / "m.onnx").graph
    made = {name: node.op_type for node in graph.node for name in node.output}
    read = {node.name: made[node.input[0]] for node in graph.node if node.op_type in ("Gemm", "MatMul")}
    assert read["attention.out_proj/Gemm"] == "DequantizeLinear"
    assert set(read.values()) == {"DequantizeLinear"}


def test_biases_and_norms_are_coded_on_request():
    task = task_of(ResidualCnn)
    model, record = Quantize(8, biases=8)(task.model, task)
    assert isinstance(model.bn1.coded["weight"], AffineTensor)
    assert isinstance(model.fc.coded["bias"], AffineTensor)
    assert not list(model.parameters())
    assert {"bn1.weight", "bn1.bias", "fc.bias"} <= {change.path for change in record.changes}
    x = inputs(ResidualCnn)
    assert float((output(model, x) - output(task.model, x)).norm() / output(task.model, x).norm()) < 0.05


def test_zero_biases_survive_a_bit_that_knows_no_zero():
    task = task_of(Mlp)
    nn.init.zeros_(task.model.fc1.bias)
    task.model.fc2.bias.data[3] = 0
    model, record = Quantize(2, biases=1)(task.model, task)
    assert torch.equal(model.fc1.bias, torch.zeros(32))
    assert float(model.fc2.bias[3]) == 0
    assert ("fc2.bias", "2 bits") in [(change.path, change.what) for change in record.changes]


def test_tied_weights_and_biases_are_coded_once():
    task = Task(seeded(Tied), calibration=[torch.arange(6).view(2, 3)])
    model, _ = Quantize(4)(task.model, task)
    assert model.embed.coded["weight"] is model.head.coded["weight"]
    two = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    two[1].bias = two[0].bias
    model, _ = Quantize(4, biases=8)(two, Task(two, calibration=[torch.randn(2, 4)]))
    assert model[0].coded["bias"] is model[1].coded["bias"]


@pytest.mark.parametrize(
    "layer",
    [
        nn.LSTM(8, 4),
        nn.GRU(8, 4, bidirectional=True),
        nn.RNN(8, 4),
        nn.Conv1d(4, 4, 3),
        nn.ConvTranspose2d(4, 4, 3),
        nn.LSTMCell(8, 4),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_no_kind_of_layer_is_skipped_in_silence(layer):
    shape = {nn.Conv1d: (2, 4, 9), nn.ConvTranspose2d: (2, 4, 5, 5), nn.LSTMCell: (3, 8)}.get(type(layer), (3, 2, 8))
    model = nn.Sequential(layer)
    task = Task(model, calibration=[torch.randn(shape)])
    for step in (Quantize(4), Share(3), Prune(sparsity=0.5)):
        smaller, record = step(model, task)
        assert {change.path for change in record.changes} == {weight.key for weight in sites(model)} != set()
        assert smaller[0](torch.randn(shape)) is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_stay_what_they_are(dtype):
    model = seeded(Mlp).to(dtype)
    x = inputs(Mlp).to(dtype)
    smaller, _ = Quantize(8, activations=8)(model, Task(model, calibration=[x]))
    assert output(smaller, x).dtype == dtype
    assert float((output(smaller, x) - output(model, x)).norm() / output(model, x).norm()) < 0.05


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"bits": 0}, "bits=0"),
        ({"bits": 9}, "bits=9"),
        ({"bits": 4.5}, "bits=4.5"),
        ({"per": "row"}, "per='row'"),
        ({"group": 0}, "group=0"),
        ({"activations": 4}, "activations=4"),
        ({"biases": 16}, "biases=16"),
        ({"fit": "max"}, "fit='max'"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_at_once(arguments, words):
    with pytest.raises(RangeError, match=words):
        Quantize(**arguments)


def test_rounded_inputs_are_seen_in_fused_encoder_layers_too():
    model = nn.Sequential(nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)).eval()
    x = torch.randn(2, 5, 16)
    task = Task(model, calibration=[x])
    small, _ = Quantize(8, activations=8)(model, task)
    assert torch.allclose(output(small, x), small(x).detach(), atol=1e-5)
    assert not torch.allclose(output(small, x), output(Quantize(8)(model, task)[0], x), atol=1e-5)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("per", ["channel", "group", "tensor", "network"])
def test_a_weight_that_shares_few_values_keeps_them(bits, per):
    task = task_of(ResidualCnn)
    shared, _ = Share(4)(task.model, task)
    model, record = Quantize(bits, per=per, activations=8)(shared, task)
    assert [change.what for change in record.skipped] == ["keeps its 16 shared values"] * len(sites(shared))
    assert record.changes
    assert all(change.what == "input in 8 bits" for change in record.changes)
    trained, _ = Recover(epochs=2)(model, task)
    for before, after, later in zip(sites(shared), sites(model), sites(trained), strict=True):
        assert torch.equal(before.read(), after.read())
        assert isinstance(later.tensor, TableTensor)
        assert len(later.read().unique()) <= 16
    with pytest.raises(NothingChangedError, match=r"keeps its 16 shared values.*fewer bits"):
        Quantize(bits, per=per)(shared, task)


def test_fewer_bits_than_a_table_are_what_was_asked_for_and_said():
    task = task_of(Mlp)
    shared, _ = Share(4)(task.model, task)
    model, record = Quantize(2)(shared, task)
    assert all(isinstance(weight.tensor, AffineTensor) and weight.tensor.grid.bits == 2 for weight in sites(model))
    assert all("no longer 16 shared values" in change.why for change in record.changes)


@pytest.mark.parametrize("name", zoo.NAMES)
def test_the_documented_group_works_on_every_network_of_the_zoo(name):
    task = Task(zoo.build(name, in_channels=3, image_size=32), calibration=[torch.randn(1, 3, 32, 32)])
    model, record = Quantize(bits=4, per="group", group=64)(task.model, task)
    for weight, change in zip(sites(model), record.changes, strict=True):
        inputs, grid = weight.read()[0].numel(), weight.tensor.grid
        assert grid.bits == 4
        if inputs % 64 == 0:
            assert (grid.per, grid.group) == ("group", 64)
        else:
            assert grid.per == "channel" or (32 <= grid.group < 64 and inputs % grid.group == 0)
            assert f"64 does not divide {inputs} inputs" in change.what


def test_coded_biases_follow_the_last_step_that_asks_for_other_bits():
    task = task_of(Mlp)
    model, _ = Quantize(8, biases=8)(task.model, task)
    fewer, record = Quantize(8, biases=4)(model, task)
    assert fewer.fc1.coded["bias"].grid.bits == 4
    assert any(change.path == "fc1.bias" and change.what == "4 bits" for change in record.changes)
