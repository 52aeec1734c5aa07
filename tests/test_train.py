import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from enxuto.artifact.save import load, save
from enxuto.errors import RangeError, RecipeError, ShapeError, TaskError
from enxuto.layers import Affine, Coded, LowRankLinear, Rehearsal, Table
from enxuto.recipe import run
from enxuto.sites import sites
from enxuto.steps.channels import PruneChannels
from enxuto.steps.factorize import Factorize
from enxuto.steps.fold import Fold
from enxuto.steps.prune import Prune
from enxuto.steps.quantize import Quantize
from enxuto.steps.recover import Recover
from enxuto.steps.share import Share
from enxuto.surgery import to_float
from enxuto.task import Task
from enxuto.training.prepare import convert, prepare
from enxuto.training.tighten import Schedule
from toys import Block, Mlp, ResidualCnn, Tied, inputs, output, photograph, seeded, task_of, unchanged

RECIPES = {
    "Prune": [Prune(sparsity=0.8)],
    "Quantize": [Quantize(4)],
    "Prune, Share": [Prune(sparsity=0.8), Share(3)],
    "Factorize, Quantize": [Factorize(rank=3), Quantize(4)],
    "pattern, Quantize": [Prune(pattern="2:4", layers="fc"), Quantize(8)],
}


def fit(model, x, y, *, steps=12, schedule=None, rate=1e-2, kind=torch.optim.Adam):
    optimizer = kind(model.parameters(), lr=rate)
    seen = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
            seen.append(schedule.strength)
    return optimizer, seen


def sparsity(model):
    found = [weight.read() for weight in sites(model)]
    return sum(int((w == 0).sum()) for w in found), sum(w.numel() for w in found)


@pytest.mark.parametrize("kind", [Mlp, ResidualCnn])
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("gradual", [False, True])
def test_a_plain_loop_trains_what_will_ship(kind, recipe, gradual, tmp_path):
    steps = RECIPES[recipe]
    if recipe.startswith("pattern") and kind is Mlp:
        steps = [Prune(pattern="2:4"), Quantize(8)]
    x, y = inputs(kind), torch.arange(len(inputs(kind))) % 5
    task = Task(seeded(kind), calibration=[x])
    before = photograph(task.model)
    model = prepare(task, steps, gradual=gradual)
    schedule = Schedule(model, steps, batches=12, end=0.6) if gradual else None
    optimizer, strengths = fit(model, x, y, schedule=schedule)
    assert model.training
    assert unchanged(task.model, before)
    assert {id(p) for p in model.parameters()} == {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert strengths == sorted(strengths)
    assert not gradual or strengths[-1] == 1.0
    shipped = convert(model)
    assert not any(isinstance(module, Rehearsal) for module in shipped.modules())
    assert torch.allclose(output(shipped, x), output(model.eval(), x), atol=1e-5)
    gone, total = sparsity(shipped)
    if recipe == "Prune":
        assert gone == round(0.8 * total)
    if recipe == "Prune, Share":
        assert gone >= round(0.8 * total)
        assert all(len(weight.read().unique()) <= 8 for weight in sites(shipped))
    if "Factorize" in recipe:
        assert any(type(module).__name__.startswith("LowRank") for module in shipped.modules())
    assert all(isinstance(w.module, Coded) for w in sites(shipped)) == (recipe != "Prune")
    save(shipped, tmp_path / "a.nxt", original=task.model)
    assert torch.equal(output(load(tmp_path / "a.nxt", into=seeded(kind, seed=1)), x), output(shipped, x))


def test_nothing_is_projected_before_the_schedule_begins_and_all_of_it_at_its_end():
    x = inputs(Mlp)
    steps = [Prune(sparsity=0.75), Quantize(3)]
    model = prepare(Task(seeded(Mlp), calibration=[x]), steps, gradual=True)
    assert torch.equal(output(model.eval(), x), output(seeded(Mlp), x))
    schedule = Schedule(model, steps, batches=20, begin=0.2, end=0.8, updates=6)
    counts = []
    for _ in range(20):
        schedule.step()
        counts.append(sparsity(model)[0])
    assert counts == sorted(counts)
    assert counts[3] == 0
    total = sparsity(model)[1]
    assert counts[-1] >= round(0.75 * total)
    assert len(set(counts)) > 4
    assert all(len(row.unique()) <= 7 for weight in sites(model) for row in weight.read())


def test_pruned_weights_wait_as_they_were_and_come_back_where_others_sink():
    x, y = inputs(Mlp), torch.arange(8) % 5
    steps = [Prune(sparsity=0.8)]
    model = prepare(Task(seeded(Mlp), calibration=[x]), steps)
    first = [weight.read() == 0 for weight in sites(model)]
    before = [weight.tensor.leaf.detach().clone() for weight in sites(model)]
    fit(model, x, y, steps=40, rate=3e-2)
    for weight, was, out in zip(sites(model), before, first, strict=True):
        assert torch.equal(weight.tensor.leaf[out], was[out])
    steps[0].rehearse_(model, 1.0)
    second = [weight.read() == 0 for weight in sites(model)]
    assert any(bool((a & ~b).any()) for a, b in zip(first, second, strict=True))
    assert sum(int(z.sum()) for z in second) == round(0.8 * sum(z.numel() for z in second))


def test_attention_embeddings_and_recurrent_layers_rehearse_too():
    for kind in (Block,):
        x, y = inputs(kind), torch.arange(4) % 5
        model = prepare(Task(seeded(kind), calibration=[x]), [Quantize(4)])
        fit(model, x, y, steps=3)
        assert torch.allclose(output(convert(model), x), output(model.eval(), x), atol=1e-3)
    net = nn.Sequential(nn.LSTM(4, 6, batch_first=True))
    task = Task(net, calibration=[torch.randn(2, 3, 4)])
    model = prepare(task, [Prune(sparsity=0.5), Share(3)])
    model(task.sample)[0].sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert all(
        torch.allclose(a, b, atol=1e-5) for a, b in zip([convert(model)(task.sample)[0]], [model(task.sample)[0]], strict=True)
    )


class Short(nn.Module):
    """A float32 network with one layer of another dtype between casts."""

    def __init__(self, kind, dtype):
        super().__init__()
        layers = {
            "Linear": lambda: nn.Sequential(nn.Linear(12, 12), nn.LayerNorm(12)),
            "Conv2d": lambda: nn.Sequential(nn.Unflatten(1, (1, 3, 4)), nn.Conv2d(1, 4, 2), nn.BatchNorm2d(4), nn.Flatten()),
            "Embedding": lambda: nn.Embedding(20, 12),
            "LSTM": lambda: nn.LSTM(12, 12),
        }
        self.kind, self.dtype = kind, dtype
        self.first, self.middle, self.last = nn.Linear(12, 12), layers[kind]().to(dtype), nn.LazyLinear(5)

    def forward(self, x):
        h = self.first(x)
        given = (x[:, 0].abs() * 5).long().clamp(0, 19) if self.kind == "Embedding" else h.to(self.dtype)
        made = self.middle(given)
        return self.last((made[0] if isinstance(made, tuple) else made).float())


def short(kind, dtype):
    model = seeded(Short, kind, dtype)
    model(torch.randn(8, 12))
    return model.eval()


SHORT = {
    "Share": [Share(3, biases=8)],
    "Quantize": [Quantize(4, biases=8, activations=8)],
    "one bit": [Quantize(1)],
    "groups": [Quantize(4, per="group", group=4)],
    "Prune, Share": [Prune(sparsity=0.5), Share(3)],
}


@pytest.mark.parametrize("kind", ["Linear", "Conv2d", "Embedding", "LSTM"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("recipe", SHORT)
def test_a_layer_of_another_dtype_trains_in_it_and_ships_to_the_bit(kind, dtype, recipe, tmp_path):
    x, y, steps = torch.randn(8, 12), torch.arange(8) % 5, SHORT[recipe]
    task = Task(short(kind, dtype), calibration=[x])
    for gradual in (False, True):
        model = prepare(task, steps, gradual=gradual)
        fit(model, x, y, steps=4, schedule=Schedule(model, steps, batches=4), kind=torch.optim.SGD)
        shipped = convert(model)
        assert torch.equal(output(shipped, x), output(model.eval(), x))
    assert {weight.read().dtype for weight in sites(shipped)} == {torch.float32, dtype}
    save(shipped, tmp_path / "a.nxt", original=task.model)
    loaded = load(tmp_path / "a.nxt", into=short(kind, dtype))
    assert torch.equal(output(loaded, x), output(shipped, x))
    again = prepare(Task(loaded, calibration=[x])).eval()
    assert torch.equal(output(again, x), output(shipped, x))
    fit(again, x, y, steps=1, kind=torch.optim.SGD)


@pytest.mark.parametrize("steps", [[Share(3, biases=8)], [Quantize(4, biases=8)]])
def test_networks_in_bfloat16_are_recovered_and_kept(steps, tmp_path):
    x = inputs(ResidualCnn).bfloat16()
    mixed = Task(short("Linear", torch.bfloat16), calibration=[torch.randn(8, 12)])
    for task, fresh in (
        (Task(seeded(ResidualCnn).bfloat16(), calibration=[x]), seeded(ResidualCnn, seed=1).bfloat16()),
        (mixed, short("Linear", torch.bfloat16)),
    ):
        model, records = run(task, [*steps, Recover(epochs=3)])
        assert records[-1].figures["batches"] == 3
        save(model, tmp_path / "a.nxt", original=task.model)
        assert torch.equal(output(load(tmp_path / "a.nxt", into=fresh), task.sample), output(model, task.sample))


def test_a_model_in_training_may_be_moved_to_another_dtype():
    x = inputs(Mlp)
    for steps in ([Share(3)], [Quantize(4)]):
        model = prepare(Task(seeded(Mlp), calibration=[x]), steps).bfloat16()
        assert torch.equal(output(convert(model), x.bfloat16()), output(model.eval(), x.bfloat16()))


def test_tied_weights_share_one_leaf_and_ship_as_one():
    task = Task(seeded(Tied), calibration=[torch.arange(6).view(2, 3)])
    for steps in ([Prune(sparsity=0.5)], [Share(3)]):
        model = prepare(task, steps)
        assert model.embed.coded["weight"] is model.head.coded["weight"]
        shipped = convert(model)
        held = [m.coded["weight"] if isinstance(m, Coded) else m.weight for m in (shipped.embed, shipped.head)]
        assert held[0] is held[1]


def test_converting_leaves_the_training_model_as_it_is():
    model = prepare(Task(seeded(Mlp), calibration=[inputs(Mlp)]), [Prune(sparsity=0.5), Quantize(4)])
    before = photograph(model)
    convert(model)
    assert unchanged(model, before)


def test_a_training_state_can_be_kept_and_taken_up_again():
    task, steps = Task(seeded(Mlp), calibration=[inputs(Mlp)]), [Prune(sparsity=0.5), Quantize(4)]
    model = prepare(task, steps)
    fit(model, inputs(Mlp), torch.arange(8) % 5, steps=3)
    other = prepare(task, steps)
    other.load_state_dict(model.state_dict())
    assert torch.equal(output(other.eval(), inputs(Mlp)), output(model.eval(), inputs(Mlp)))


def test_steps_that_make_new_layers_come_before_those_that_train_them():
    task = Task(seeded(ResidualCnn), calibration=[inputs(ResidualCnn)])
    model = prepare(task, [Fold(), PruneChannels(sparsity=0.25), Factorize(rank=2), Prune(sparsity=0.5), Quantize(4)])
    assert output(convert(model), inputs(ResidualCnn)).shape == (4, 5)
    for late in (Fold(), PruneChannels(sparsity=0.25), Factorize(rank=2)):
        with pytest.raises(RecipeError, match=f"put {type(late).__name__} first"):
            prepare(task, [Prune(sparsity=0.5), late])


def test_a_step_that_trains_by_itself_is_refused():
    with pytest.raises(RecipeError, match="Recover trains by itself"):
        prepare(Task(seeded(Mlp), calibration=[inputs(Mlp)]), [Prune(sparsity=0.5), Recover()])


def test_what_cannot_be_rehearsed_is_refused_before_training():
    task = Task(seeded(Mlp), calibration=[inputs(Mlp)])
    with pytest.raises(ShapeError, match="no code for zero"):
        prepare(task, [Prune(sparsity=0.5), Quantize(1)])


@pytest.mark.parametrize("step", [Quantize(8, activations=8), Quantize(8, biases=8), Share(4, biases=8)], ids=str)
def test_inputs_and_biases_are_not_forgotten(step):
    """What a step would do by itself is what ships after a loop, too."""
    x = inputs(Mlp)
    task = Task(seeded(Mlp), calibration=[x])
    alone, _ = step(task.model, task)
    shipped = convert(prepare(task, [step]))
    assert [type(m) for m in shipped.modules()] == [type(m) for m in alone.modules()]


OPTIMIZERS = {
    "SGD with momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-2),
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-2),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
}


@pytest.mark.parametrize("kind", [Mlp, ResidualCnn, Block])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("then", [[], [Share(3)], [Quantize(4, biases=8)]])
def test_what_is_compressed_stays_so_in_a_loop_of_ones_own(kind, optimizer, then, tmp_path):
    task = task_of(kind)
    compressed, _ = run(task, [Prune(0.9), *then])
    save(compressed, tmp_path / "before.nxt", original=task.model)
    loaded = load(tmp_path / "before.nxt", into=seeded(kind, seed=1))
    x, y = inputs(kind), torch.arange(len(inputs(kind))) % 5
    model = prepare(Task(loaded, calibration=[x]))
    made = OPTIMIZERS[optimizer](model.parameters())
    for _ in range(8):
        made.zero_grad()
        nn.functional.cross_entropy(model(x).flatten(1)[:, :5], y).backward()
        made.step()
    shipped = convert(model)
    assert [type(module) for module in shipped.modules()] == [type(module) for module in compressed.modules()]
    for before, after in zip(sites(compressed), sites(shipped), strict=True):
        assert bool((after.read()[before.read() == 0] == 0).all())
        assert type(after.tensor) is type(before.tensor)
        assert Share(3) not in then or len(after.read().unique()) <= 8
    assert not torch.equal(output(shipped, x), output(compressed, x))


def test_the_last_step_that_names_a_weight_decides_also_in_training():
    task = task_of(Mlp)
    quantize, share = Quantize(8), Share(3)
    for steps, grid in (([quantize, Quantize(4)], Affine(4)), ([quantize, share], Table(3)), ([share, quantize], Table(3))):
        for gradual in (False, True):
            model = prepare(task, steps, gradual=gradual)
            if gradual:
                Schedule(model, steps, batches=1).step()
            alone, _ = run(task, steps)
            for trained, one in zip(sites(convert(model)), sites(alone), strict=True):
                assert trained.tensor.grid == one.tensor.grid == grid
        coded, _ = steps[0](task.model, task)
        shipped = convert(prepare(Task(coded, calibration=task.calibration), steps[1:]))
        assert all(weight.tensor.grid == grid for weight in sites(shipped))


@pytest.mark.parametrize(
    ("steps", "grid"),
    [
        ([Share(4), Quantize(2)], Affine(2)),
        ([Quantize(8, biases=8), Quantize(4, biases=4)], Affine(4)),
        ([Quantize(8), Share(3)], Table(3)),
    ],
    ids=str,
)
@pytest.mark.parametrize("gradual", [False, True])
def test_a_grid_that_a_later_step_replaced_does_not_come_back_in_a_schedule(steps, grid, gradual):
    x, y = inputs(Mlp), torch.arange(8) % 5
    model = prepare(Task(seeded(Mlp), calibration=[x]), steps, gradual=gradual)
    before = dict(model.named_parameters())
    schedule = Schedule(model, steps, batches=9, end=0.5, updates=3)
    for _ in range(9):
        fit(model, x, y, steps=1)
        learned = {name: parameter.clone() for name, parameter in before.items() if name.endswith("change")}
        schedule.step()
        now = dict(model.named_parameters())
        assert all(now[name] is parameter for name, parameter in before.items())  # those an optimizer knows
        assert all(torch.equal(now[name], values) for name, values in learned.items())
    assert all(weight.tensor.grid == grid for weight in sites(convert(model)))


def test_a_weight_that_is_zero_throughout_stays_so_and_is_named(caplog):
    x, y, net = inputs(Mlp), torch.arange(8) % 5, seeded(Mlp)
    nn.init.zeros_(net.fc2.weight)
    net.fc1.weight.data[0] = 0
    model = prepare(Task(net, calibration=[x]))
    assert "'fc2.weight' is zero throughout and stays so" in caplog.text
    assert "fc1" not in caplog.text
    fit(model, x, y, steps=3)
    assert not convert(model).fc2.weight.count_nonzero()
    caplog.clear()
    prepare(Task(seeded(Mlp), calibration=[x]), [Prune(sparsity=0.999)])
    assert not caplog.text


def test_a_model_that_is_prepared_again_takes_the_grid_of_now():
    x = inputs(Mlp)
    model = prepare(Task(seeded(Mlp), calibration=[x]), [Quantize(8), Quantize(4)])
    again = prepare(Task(model, calibration=[x]), [Quantize(8)])
    assert all(weight.tensor.grid == Affine(8) for weight in sites(again))
    assert all(weight.tensor.grid == Affine(4) for weight in sites(model))


@pytest.mark.parametrize(
    "arguments",
    [{"batches": 0}, {"batches": 5, "begin": 0.8, "end": 0.5}, {"batches": 5, "end": 1.5}, {"batches": 5, "updates": 0}],
)
def test_a_schedule_that_makes_no_sense_is_refused(arguments):
    with pytest.raises(RangeError, match="makes no sense"):
        Schedule(seeded(Mlp), [], **arguments)


def test_a_schedule_of_what_was_not_prepared_and_an_optimizer_of_another_are_refused():
    model, task = seeded(Mlp), Task(seeded(Mlp), calibration=[inputs(Mlp)])
    for wrong in (model, prepare(task), "model"):
        with pytest.raises(RecipeError, match=r"without leaves to tighten.*gradual=True"):
            Schedule(wrong, [Prune(0.5)], batches=4)
    schedule = Schedule(prepare(task, [Prune(0.5)], gradual=True), [Prune(0.5)], batches=4)
    with pytest.raises(TaskError, match=r"would train another one; make it after prepare, of model.parameters\(\)"):
        schedule.observe(torch.optim.SGD(model.parameters()))
    schedule.observe(torch.optim.SGD(schedule.model.parameters()))


@pytest.mark.parametrize("batches", [1, 2, 3, 30])
@pytest.mark.parametrize(("begin", "end"), [(0.0, 0.7), (0.3, 1.0), (0.9, 0.95)])
def test_every_schedule_ends_at_full_strength(batches, begin, end):
    steps = [Prune(sparsity=0.5)]
    model = prepare(Task(seeded(Mlp), calibration=[inputs(Mlp)]), steps, gradual=True)
    schedule = Schedule(model, steps, batches=batches, begin=begin, end=end)
    for _ in range(batches):
        schedule.step()
    gone, total = sparsity(model)
    assert gone == round(0.5 * total)
    assert schedule.strength == 1.0


def test_a_low_rank_layer_is_what_trains():
    model = prepare(Task(seeded(Mlp), calibration=[inputs(Mlp)]), [Factorize(rank=3)])
    assert isinstance(model.fc1, LowRankLinear)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("step", ["Quantize", Quantize, None])
def test_what_is_no_step_is_not_prepared(step):
    with pytest.raises(RecipeError, match=r"is no step; write for example Quantize\(bits=8\)"):
        prepare(task_of(Mlp), [step])


class Remembers(nn.Module):
    """Keeps an activation in an attribute, as people do to look at it."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.seen = Mlp(), None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = self.net.fc1(x)
        return self.net(x)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
@pytest.mark.parametrize("kind", ["an activation in an attribute", "the old weight_norm"])
def test_what_a_training_leaves_in_attributes_does_not_stop_copies(kind: str) -> None:
    """torch does not copy tensors that hang on a graph."""
    model = Remembers() if kind.startswith("an") else Mlp()
    if not kind.startswith("an"):
        nn.utils.weight_norm(model.fc1)
    x = torch.randn(8, 12)
    task = Task(model, calibration=[x])
    trained, _ = Recover(epochs=2)(model, task)
    assert torch.equal(convert(trained)(x), trained.eval()(x))
    own = prepare(task, [Prune(sparsity=0.5)])
    own(x).sum().backward()
    assert torch.isfinite(convert(own)(x)).all()


@pytest.mark.parametrize("step", [Prune(sparsity=0.5), Quantize(2), Share(3), Factorize(rank=3)], ids=str)
@pytest.mark.parametrize("steps", [[], [Prune(sparsity=0.3)], [Quantize(8, biases=8)], [Share(4)]], ids=str)
def test_a_step_leaves_a_model_in_training_as_it_is(step, steps):
    x = inputs(Mlp)
    model = prepare(Task(seeded(Mlp), calibration=[x]), steps)
    before = photograph(model)
    step(model, Task(model, calibration=[x]))
    assert unchanged(model, before)


class Own(nn.Module):
    """Parameters that no layer kind covers, one named as a method of a dict, beside layers with biases that began as zeros."""

    def __init__(self):
        super().__init__()
        self.w, self.keys = nn.Parameter(torch.randn(16, 12)), nn.ParameterList([torch.randn(16, 16)])
        self.values = nn.Parameter(torch.randn(16))
        self.place, self.begun = nn.Parameter(torch.zeros(1, 16)), nn.Parameter(torch.tensor([0.0, 1.0] * 8))
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(16), nn.Linear(16, 24), nn.Linear(24, 5)
        nn.init.zeros_(self.fc1.bias)

    def forward(self, x):
        x = self.norm(nn.functional.linear(x, self.w) @ self.keys[0] + self.values + self.place + self.begun)
        return self.fc2(torch.tanh(self.fc1(x)))


MASKS = [("", "w"), ("keys", "0"), ("", "values"), ("norm", "bias"), ("fc2", "bias"), ("fc2", "weight")]
ZERO_RECIPES = {
    "nothing": [],
    "Quantize": [Quantize(8, biases=8)],
    "Share": [Share(4, biases=8)],
    "Factorize": [Factorize(rank=2)],
    "PruneChannels": [PruneChannels(macs=0.6, layers="fc*")],
}


def zeros_of(model):
    """Where each parameter is zero, decoded, by name."""
    return {name: tensor == 0 for name, tensor in to_float(model).named_parameters()}


@pytest.mark.parametrize("way", ["Recover", "SGD", "AdamW", "from a file"])
@pytest.mark.parametrize("recipe", ZERO_RECIPES)
def test_zeros_of_masks_stay_zero_in_every_parameter_and_others_learn(recipe, way, tmp_path):
    model = seeded(Own)
    for path, name in MASKS:
        prune.random_unstructured(model.get_submodule(path), name, 0.5)
    x, y = torch.randn(32, 12), torch.arange(32) % 5
    task = Task(model, calibration=[x], train=[(x, y)] * 4, loss=nn.functional.cross_entropy)
    small = run(task, ZERO_RECIPES[recipe])[0]
    if way == "from a file":
        save(small, tmp_path / "a.nxt", original=model)
        small = load(tmp_path / "a.nxt", into=model)
    if way in ("Recover", "from a file"):
        trained = Recover(learning_rate=1e-2)(small, task)[0]
    else:
        ready = prepare(Task(small, calibration=[x]))
        optimizer = getattr(torch.optim, way)(ready.parameters(), lr=1e-2, weight_decay=1e-2)
        for _ in range(4):
            optimizer.zero_grad()
            nn.functional.cross_entropy(ready(x), y).backward()
            optimizer.step()
        trained = convert(ready)
    before, after = zeros_of(small), zeros_of(trained)
    assert list(before) == list(after)
    assert [type(module) for module in trained.modules()] == [type(module) for module in small.modules()]
    names = [f"{path}.{name}" if path else name for path, name in MASKS]
    if recipe == "Factorize":
        names = [*names[:4], "fc2.up.bias"]
    for key in names:
        assert bool(before[key].any())
        assert bool(after[key][before[key]].all()), key
    learning = {"Factorize": ["fc1.up.bias"], "nothing": ["fc1.bias"]}.get(recipe, [])  # zeros on a grid may stay its zero
    for key in ("place", "begun", *learning):
        assert bool(before[key].any())
        assert not bool(after[key].any()), key


def test_what_is_frozen_and_what_had_no_mask_is_no_leaf_in_training():
    model = seeded(Own)
    model.w.data[0] = 0
    model.values.data[0] = 0
    model.keys[0].data[0] = 0
    model.keys.requires_grad_(False)
    ready = prepare(Task(model, calibration=[torch.randn(2, 12)]))
    assert [name for name, module in ready.named_modules() if isinstance(module, Rehearsal)] == ["coded.w"]
    assert [name for name, _ in convert(ready).named_parameters()] == [name for name, _ in model.named_parameters()]
    assert not convert(ready).keys[0].requires_grad


@pytest.mark.parametrize("step", [Prune(0.5), Quantize(4, biases=4), Share(3)])
def test_what_is_frozen_learns_nothing(step):
    x, y = inputs(Mlp), torch.arange(len(inputs(Mlp))) % 5
    task = Task(seeded(Mlp), calibration=[x], train=[(x, y)] * 8, loss=nn.functional.cross_entropy)
    task.model.fc1.requires_grad_(False)
    if not isinstance(step, Prune):
        shipped, _ = step(task.model, task)
    else:
        shipped, _ = run(task, [Prune(0.5)])
        trained, _ = run(task, [Prune(0.5), Recover(epochs=2, learning_rate=1e-2)])
        assert torch.equal(trained.fc1.weight, shipped.fc1.weight)
        assert not trained.fc1.weight.requires_grad
        assert trained.fc2.weight.requires_grad
    ready = prepare(task, [step])
    fit(ready, x, y)
    small = to_float(convert(ready))
    assert torch.equal(small.fc1.weight, to_float(shipped).fc1.weight)
    assert torch.equal(small.fc1.bias, to_float(shipped).fc1.bias)
    assert not torch.equal(small.fc2.weight, to_float(shipped).fc2.weight)


def test_a_traced_network_keeps_the_zeros_of_its_own_parameters():
    x = torch.randn(8, 12)
    model = torch.fx.symbolic_trace(seeded(Own))
    model.w.data[:, :6] = 0
    trained, _ = Recover(learning_rate=1e-2)(
        model, Task(model, calibration=[x], train=[(x, torch.zeros(8, 5))], loss=nn.MSELoss())
    )
    assert bool((trained.w == 0)[:, :6].all())
    assert not torch.equal(trained.w, model.w)
    assert torch.equal(output(trained, x), output(convert(trained), x))
