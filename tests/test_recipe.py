import dataclasses
import json
import logging
from collections.abc import Callable

import pytest
import torch

import enxuto as ex
from enxuto.errors import Error, LayerError, NothingChangedError, RangeError, RecipeError, TaskError
from enxuto.progress import listening
from enxuto.recipe import from_data, from_yaml, line, run, to_data, to_yaml, was_skipped
from enxuto.records import Record
from enxuto.steps.channels import PruneChannels
from enxuto.steps.equalize import Equalize
from enxuto.steps.factorize import Factorize
from enxuto.steps.fold import Fold
from enxuto.steps.prune import Prune
from enxuto.steps.quantize import Quantize
from enxuto.steps.recover import Recover
from enxuto.steps.regrow import Regrow
from enxuto.steps.repair import Repair
from enxuto.steps.share import Share
from enxuto.steps.table import STEPS
from enxuto.steps.tune import Tune
from toys import Mlp, inputs, output, photograph, task_of, unchanged

RECIPE = (
    Fold(),
    Equalize(by="inputs", bits=4, per="tensor", activations=None, alpha=0.5),
    Prune(sparsity=0.9, layers=("*", "!fc3"), scores="magnitude"),
    Prune(pattern="2:4"),
    PruneChannels(macs=0.5),
    Factorize(rank=3),
    Quantize(bits=4, per="group", group=16, activations=8, biases=8),
    Share(bits=3),
    Regrow(by="random", spread="uniform"),
    Repair(gains=False),
    Tune(passes=3),
    Recover(epochs=2.5, learning_rate=1e-4),
    Recover(during=(Regrow(0.5), Prune(0.5), Share(3)), tight=0.5, rate="6 kB"),
)


def test_a_recipe_survives_data_json_and_yaml():
    assert {type(step).__name__ for step in RECIPE} == set(STEPS)
    assert from_data(to_data(RECIPE)) == RECIPE
    assert from_data(json.loads(json.dumps(to_data(RECIPE)))) == RECIPE
    assert from_yaml(to_yaml(RECIPE)) == RECIPE
    assert from_yaml(json.dumps(to_data(RECIPE))) == RECIPE
    assert from_yaml(to_yaml([])) == ()


@pytest.mark.parametrize("kind", STEPS.values())
def test_a_recipe_keeps_its_meaning_when_a_default_changes(kind, monkeypatch):
    """Every argument is written; short recipes are read all the same."""
    step = kind()
    written = to_yaml([step])
    fields = dataclasses.fields(kind)
    assert list(to_data([step])[0]) == ["step", *(field.name for field in fields)]

    @dataclasses.dataclass(frozen=True)
    class Later(kind):
        """The same step in a later version, where nothing has the default it had."""

        layers: str = "later*"
        bits: int = 7
        biases: int | None = 5
        epochs: float = 9.0
        sparsity: float = 0.1

    monkeypatch.setitem(STEPS, kind.__name__, Later)
    (again,) = from_yaml(written)
    assert {field.name: getattr(again, field.name) for field in fields} == {f.name: getattr(step, f.name) for f in fields}


@dataclasses.dataclass(frozen=True)
class Halve:
    """A step as a user writes one."""

    times: int = 1
    by: Callable[[float], float] | None = None

    def __call__(self, model, task):
        return model, Record(str(self))


class Bare:
    def __call__(self, model, task):
        return model, Record("bare")


def test_own_steps_survive_by_their_import_path_where_that_is_allowed():
    text = to_yaml([Halve(times=3), Prune()])
    assert f"step: {Halve.__module__}:Halve" in text
    assert from_yaml(text, own=True) == (Halve(times=3), Prune())
    with pytest.raises(RecipeError, match=r"step 1 of the recipe is '.*:Halve', which is not known; .*own=True"):
        from_yaml(text)


@pytest.mark.parametrize(
    "name", ["no.such.module:Halve", f"{__name__}:Nobody", f"{__name__}:Bare", "json:dumps", ":", "Shrink", ".:a"]
)
def test_a_path_that_leads_to_no_step_is_refused(name):
    with pytest.raises(RecipeError, match=r"step 1 of the recipe is .*, which is not known"):
        from_data([{"step": name}], own=True)


def test_what_a_step_must_be_is_said():
    with pytest.raises(
        RecipeError, match=r"an own step: an instance of a frozen dataclass that is called as step\(model, task\)"
    ):
        run(task_of(Mlp), [Bare()])
    with pytest.raises(
        RecipeError, match=r"step 2 of the recipe, Halve, holds builtin_function_or_method in its field 'by'; a field"
    ):
        run(task_of(Mlp), [Halve(), Halve(by=abs)])
    assert len(run(task_of(Mlp), [Halve(times=2)])[1]) == 1


def test_a_step_in_one_line_leaves_out_the_defaults():
    assert line(Share()) == "Share()"
    assert line(Recover(epochs=2.0)) == "Recover(epochs=2.0)"
    assert from_data([{"step": "Quantize", "per": "tensor"}]) == (Quantize(bits=8, per="tensor"),)


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        (
            "- step: Shrink",
            RecipeError,
            r"step 1 of the recipe is 'Shrink', which is not known; use one of Fold, Equalize, Prune",
        ),
        ("- step: Prune\n  amount: 0.5", RecipeError, r"step 1, Prune, has no argument 'amount'; its arguments are sparsity"),
        ("- step: Prune\n- step: 7", RecipeError, "step 2 of the recipe is 7"),
        ("- step: [Prune]", RecipeError, r"step 1 of the recipe is \['Prune'\]"),
        ("- Prune", RecipeError, "step 1 of the recipe is 'Prune'"),
        ("- sparsity: 0.5", RecipeError, "step 1 of the recipe is None"),
        ("step: Prune", RecipeError, "a recipe is a list of steps, not dict"),
        ("Prune", RecipeError, "a recipe is a list of steps, not str"),
        ("", RecipeError, "a recipe is a list of steps, not NoneType"),
        ("- step: Prune\n  sparsity: high", RangeError, "step 1, Prune: sparsity='high' is"),
        ("- step: Prune\n  sparsity: 2", RangeError, "step 1, Prune: sparsity=2 is"),
        ("- step: Quantize\n  bits: four", RangeError, r"step 1, Quantize: bits='four' \(str\) is"),
        ("- {step: Prune", RecipeError, "not valid YAML"),
        ("!!python/object/apply:os.system ['true']", RecipeError, "not valid YAML"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused_with_its_place(text, error, words):
    with pytest.raises(error, match=words):
        from_yaml(text)


def test_running_a_recipe_edits_nothing_and_says_what_each_step_did(caplog):
    task = task_of(Mlp)
    task.model.train()
    before = photograph(task.model)
    heard = []
    with listening(lambda *said: heard.append(said)), caplog.at_level(logging.INFO):
        model, records = run(task, [Prune(sparsity=0.5), Share(3)])
    assert unchanged(task.model, before)
    assert not model.training
    assert [record.step for record in records] == ["Prune()", "Share(bits=3)"]
    assert [said for said in heard if said[2] == 2] == [("Prune()", 0, 2), ("Share(bits=3)", 1, 2), ("Share(bits=3)", 2, 2)]
    assert "Share(bits=3)" in caplog.text


def test_an_empty_recipe_gives_a_copy():
    task = task_of(Mlp)
    model, records = run(task, [])
    assert records == ()
    assert model is not task.model
    assert torch.equal(output(model, inputs(Mlp)), output(task.model, inputs(Mlp)))


def test_a_step_that_refuses_leaves_everything_as_it_was():
    task = task_of(Mlp)
    before, chance = photograph(task.model), torch.get_rng_state()
    with pytest.raises(NothingChangedError):
        run(task, [Prune(sparsity=0.5), Fold(layers="fc*")])
    assert unchanged(task.model, before)
    assert torch.equal(torch.get_rng_state(), chance)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_step_that_finds_nothing_anywhere_is_skipped_and_named_where_others_work(place):
    task = task_of(Mlp)
    others = [Prune(sparsity=0.5), Quantize(bits=4)]
    model, records = run(task, [*others[:place], Fold(), *others[place:]])
    (change,) = records[place].skipped
    assert (records[place].step, records[place].changes) == ("Fold()", ())
    assert change.what == "nothing to do"
    assert "no batch norm" in change.why
    assert torch.equal(output(model, inputs(Mlp)), output(run(task, others)[0], inputs(Mlp)))
    assert [was_skipped(record) for record in records] == [at == place for at in range(3)]


@pytest.mark.parametrize("steps", [[Fold()], [Fold(), Fold()], [PruneChannels(), Fold()]])
def test_a_recipe_in_which_no_step_finds_anything_is_refused(steps):
    with pytest.raises(NothingChangedError):
        run(task_of(Mlp), steps)


def test_where_every_step_must_act_none_is_skipped():
    with pytest.raises(NothingChangedError, match="no batch norm"):
        run(task_of(Mlp), [Fold(), Quantize()], strict=True)


def test_a_skipped_step_is_not_tried_again_after_a_kill(tmp_path):
    from enxuto.artifact.checkpoints import FolderCheckpoints

    task, kept = task_of(Mlp), FolderCheckpoints(tmp_path)
    first, _ = run(task, [Fold(), Quantize(bits=4)], checkpoints=kept)
    again, records = run(task, [Fold(), Quantize(bits=4), Fold()], checkpoints=kept)
    assert [was_skipped(record) for record in records] == [True, False, True]
    assert torch.equal(output(first, inputs(Mlp)), output(again, inputs(Mlp)))
    with pytest.raises(NothingChangedError):
        run(task, [Fold()], checkpoints=kept)


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ("Quantize", "steps is str, not a list of steps"),
        (Quantize(), "steps is Quantize, not a list of steps; write"),
        ([Quantize()] * 2 + [Quantize], "step 3 of the recipe is the class Quantize, which is no step"),
        ([None], "step 1 of the recipe is None, which is no step"),
        ([{"step": "Quantize"}], r"step 1 of the recipe is \{'step': 'Quantize'\}"),
        ([lambda model, task: (model, None)], "which is no step; write for example"),
    ],
)
def test_what_is_no_recipe_is_refused_before_any_step_runs(steps, words):
    with pytest.raises(RecipeError, match=words):
        run(task_of(Mlp), steps)


@pytest.mark.parametrize("layers", [3, None, ["fc1", 2]])
def test_layers_that_are_no_wildcards_are_refused_before_any_step_runs(layers):
    ran = []

    def listen(*what):
        ran.append(what)

    with listening(listen), pytest.raises(LayerError, match=r"layers=.* write a wildcard as 'fc\*', or a list"):
        run(task_of(Mlp), [Quantize(), Prune(layers=layers)])
    assert not ran


ODD = ("zzz", [1], [[1]], object(), float("nan"), {"a": 1}, 1.5j, Quantize, b"x", 8.5, 10**400)


@pytest.mark.parametrize("kind", STEPS.values())
def test_every_field_of_every_step_refuses_what_is_of_another_type(kind):
    for field in dataclasses.fields(kind):
        for value in ODD if field.name != "layers" else ():
            counts = (int,) if "int" in field.type and "str" not in field.type else (int, float)
            if any(kind in field.type for kind in ("int", "float")) and isinstance(value, counts) and value > 0:
                continue  # a number where one belongs, however large
            with pytest.raises(Error):
                kind(**{field.name: value})
            if field.type == "bool":
                with pytest.raises(RangeError, match=f"^{field.name}=.* neither True nor False"):
                    kind(**{field.name: value})


@pytest.mark.parametrize("kind", STEPS.values())
def test_every_step_says_what_it_takes_when_it_is_called_with_anything_else(kind):
    task, step = task_of(Mlp), kind()
    for model, other, named in (
        (None, task, "model is NoneType"),
        (task.model, None, "task is NoneType"),
        (task, task.model, "model is Task"),
    ):
        with pytest.raises(TaskError, match=f"^{named}.* takes a network and a task; write step"):
            step(model, other)


def test_what_says_how_something_is_done_that_was_not_asked_for_is_refused():
    with pytest.raises(RangeError, match=r"group=32 is for per='group', not per='channel'"):
        Quantize(group=32)
    with pytest.raises(RangeError, match=r"ranges='mse' is for activations=8"):
        Quantize(ranges="mse")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Prune(sparsity="0.5"),
        lambda: Prune(sparsity=None),
        lambda: Prune(pattern=3),
        lambda: Prune(scores=["lamp"]),
        lambda: Quantize(bits="8"),
        lambda: Quantize(group=True),
        lambda: PruneChannels(macs="0.5"),
        lambda: PruneChannels(sparsity="0.5"),
        lambda: PruneChannels(multiple_of=True),
        lambda: Factorize(rank=True),
        lambda: Factorize(energy="most"),
        lambda: Recover(epochs="1"),
        lambda: Recover(teacher=None),
        lambda: Recover(weight_decay=-1),
        lambda: Recover(devices="two"),
        lambda: Recover(devices=0),
        lambda: Recover(precision="8"),
    ],
)
def test_arguments_of_another_type_are_refused_like_those_out_of_range(make):
    with pytest.raises(RangeError, match=r"(sparsity|pattern|scores|bits|group|macs|multiple_of|rank|energy|epochs)=|=.*; "):
        make()


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        (lambda task: ex.run(task.model, [Quantize()]), "task is Mlp, not a Task"),
        (lambda task: ex.prepare(task, None), "steps is NoneType, not a list of steps"),
        (lambda task: ex.Schedule(task.model, None, batches=5), "steps is NoneType, not a list of steps"),
        (lambda task: ex.Schedule(task.model, [Prune()], batches="5"), "batches='5'"),
        (lambda task: ex.Schedule(task.model, [Prune()], batches=5, end="x"), "end='x'"),
        (lambda task: ex.convert(None), "model is NoneType"),
        (lambda task: ex.export(task.model, None), "None is no path"),
        (lambda task: ex.Sensitivity.load(3), "3 is no path"),
    ],
)
def test_verbs_say_what_is_wrong_with_what_they_were_given(verb, words):
    with pytest.raises(Error, match=words):
        verb(task_of(Mlp))
