"""Training the reference networks: the same seed gives the same weights, the cache gives them back or is replaced."""

import numpy as np
import pytest
import torch
from torch import nn

from enxuto import data, zoo
from enxuto.errors import OutputError, RangeError, TaskError
from enxuto.zoo.training import TRAININGS, one_cycle


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([tensor.flatten().double() for tensor in model.state_dict().values()])


def once(name: str, digits: data.Dataset, seed: int) -> nn.Module:
    torch.manual_seed(7)
    batches = data.batches(digits.train_x[:256], digits.train_y[:256], 64, seed)
    model = zoo.build(name, image_size=8)
    return zoo.train(model, batches, epochs=2, seed=seed, training=TRAININGS.get(name, zoo.Training()))


@pytest.mark.parametrize("name", ["lenet-300-100", "resnet-8", "gru", "transformer"])
def test_the_same_seed_trains_the_same_weights_and_another_does_not(name, digits):
    first = once(name, digits, seed=3)
    assert torch.equal(weights(first), weights(once(name, digits, seed=3)))
    assert not torch.equal(weights(first), weights(once(name, digits, seed=4)))


def test_training_learns_and_leaves_the_model_it_was_given_alone(digits):
    torch.manual_seed(0)
    model = zoo.build("lenet-300-100", image_size=8)
    before = weights(model).clone()
    batches = data.batches(digits.train_x, digits.train_y, 64)
    after = zoo.train(model, batches, epochs=6)
    assert torch.equal(weights(model), before)
    evaluate = data.accuracy(digits.test_x, digits.test_y)
    assert evaluate(model).mean() < 0.4
    assert evaluate(after).mean() > 0.94


def test_training_neither_reads_nor_moves_torchs_own_generator(digits):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    batches = data.batches(digits.train_x[:64], digits.train_y[:64], 32)
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10))
    state = torch.get_rng_state()
    first = zoo.train(model, batches, epochs=1, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert torch.equal(weights(first), weights(zoo.train(model, batches, epochs=1, seed=5)))


def test_a_trained_network_is_contiguous_and_in_eval_mode(digits):
    model = once("resnet-8", digits, seed=0)
    assert not any(module.training for module in model.modules())
    assert all(parameter.is_contiguous() for parameter in model.parameters())


def test_progress_counts_every_batch(digits):
    seen: list[tuple[int, int, str]] = []
    batches = data.batches(digits.train_x[:100], digits.train_y[:100], 50)
    zoo.train(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), batches, epochs=2, progress=lambda *a: seen.append(a))
    assert [(done, total) for done, total, _ in seen] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert seen[-1][2].startswith("epoch 2/2, loss ")


def test_training_refuses_nothing_to_do_and_says_when_it_diverges(digits):
    batches = data.batches(digits.train_x[:64], digits.train_y[:64], 32)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    with pytest.raises(RangeError, match="epochs=0"):
        zoo.train(model, batches, epochs=0)
    with pytest.raises(RangeError, match="learning_rate=-1"):
        zoo.train(model, batches, epochs=1, learning_rate=-1)
    with pytest.raises(TaskError, match=r"diverged in epoch \d of 9; learning_rate=1e\+30"):
        zoo.train(model, batches, epochs=9, learning_rate=1e30, training=zoo.Training(optimizer="sgd"))


def test_the_learning_rate_rises_falls_and_ends_near_zero():
    rates = [one_cycle(position) for position in np.linspace(0, 1, 101)]
    assert np.argmax(rates) == 20
    assert rates[0] == 0.04
    assert rates[-1] == pytest.approx(0, abs=1e-12)


def trained(digits, cache, **changes):
    done = []
    given = {"name": "lenet-300-100", "epochs": 1, "seed": 0} | changes
    name = given.pop("name")
    model = zoo.trained(name, digits, cache=cache, progress=lambda *a: done.append(a), **given)
    return model, bool(done)


def test_the_second_time_a_network_comes_from_the_cache_with_equal_weights(digits, tmp_path):
    first, was_trained = trained(digits, tmp_path / "new" / "folder")
    assert was_trained
    second, was_trained = trained(digits, tmp_path / "new" / "folder")
    assert not was_trained
    assert torch.equal(weights(first), weights(second))
    assert not second.training


@pytest.mark.parametrize("change", [{"seed": 1}, {"epochs": 2}, {"name": "lenet-5"}, {"name": "gru", "sizes": {"hidden": 8}}])
def test_whatever_changes_the_weights_has_a_cache_file_of_its_own(digits, tmp_path, change):
    trained(digits, tmp_path)
    assert trained(digits, tmp_path, **change)[1]
    assert len(list(tmp_path.iterdir())) == 2


def test_another_split_of_the_same_data_is_trained_anew(digits, tmp_path):
    trained(digits, tmp_path)
    assert trained(data.load("digits", seed=1), tmp_path)[1]


@pytest.mark.parametrize("damage", ["empty", "truncated", "bit", "foreign", "another network"])
def test_a_damaged_cache_file_is_trained_again_and_replaced(digits, tmp_path, damage, caplog):
    first, _ = trained(digits, tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-9] ^= 0x10
    other = {"empty": b"", "truncated": whole[:-100], "bit": bytes(flipped), "foreign": b"PK\3\4" * 100}
    if damage == "another network":  # tensors of another network under the right name
        trained(digits, tmp_path / "other", name="gru")
        other[damage] = next((tmp_path / "other").iterdir()).read_bytes()
    path.write_bytes(other[damage])
    again, was_trained = trained(digits, tmp_path)
    assert was_trained
    assert "damaged" in caplog.text
    assert torch.equal(weights(first), weights(again))
    assert path.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_refused_before_training(digits, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="file"):
        trained(digits, tmp_path / "file")


def test_a_break_in_training_leaves_no_file(digits, tmp_path):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        zoo.trained("lenet-300-100", digits, epochs=1, cache=tmp_path, progress=interrupt)
    assert list(tmp_path.iterdir()) == []
