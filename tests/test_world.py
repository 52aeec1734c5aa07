"""Two processes that share a job, as torchrun starts them: the same result as of one, files from the first, and no hanging."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard

import enxuto as ex
from enxuto import world
from enxuto.errors import ProcessError, RangeError, TargetError, TaskError
from enxuto.sites import sites
from enxuto.training import state

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of a fork beside threads, which newer Pythons dislike
X = torch.randn(47, 1, 6, 6, generator=torch.Generator().manual_seed(1))
Y = torch.arange(47) % 5
BATCHES = [(X[at : at + 23], Y[at : at + 23]) for at in range(0, 47, 23)]  # uneven parts, and a last batch of one sample


class Net(nn.Module):
    """A batch norm, and a branch that only some samples take."""

    trained = 0  # samples that came by in training

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Linear(64, 5)
        self.rare = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        Net.trained += len(x) * self.training
        h = torch.relu(self.norm(self.conv(x))).flatten(1)
        odd = x.flatten(1).sum(1) > 4
        return self.fc(h) if not bool(odd.any()) else self.fc(h).index_add(0, odd.nonzero()[:, 0], self.rare(h[odd]))


def task(**more: Any) -> ex.Task:
    torch.manual_seed(0)
    return ex.Task(Net(), calibration=[X[:16]], train=BATCHES, loss=nn.functional.cross_entropy, **more)


def accuracy(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return (model(X).argmax(1) == Y).float()


def _inside(work: Callable[..., Any], rank: int, port: int, folder: Path, arguments: tuple[Any, ...]) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.manual_seed(rank)  # what nobody seeds is different in each
    world.size()
    distributed.barrier()  # one that is through at once would be gone before the other has found it
    try:
        made: Any = work(*arguments)
    except ex.Error as error:
        made = error
    torch.save(made, folder / f"{rank}.pt")


def both(folder: Path, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What each of two processes gave; None for one that was killed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir(exist_ok=True)
    context = multiprocessing.get_context("fork")  # torch is here already, and takes seconds to import
    started = [context.Process(target=_inside, args=(work, rank, port, folder, arguments)) for rank in (0, 1)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    found = [folder / f"{rank}.pt" for rank in (0, 1)]
    return [torch.load(each, weights_only=False) if each.exists() else None for each in found]


def trained(**more: Any) -> dict[str, Tensor]:
    step = ex.Recover(epochs=3, learning_rate=1e-2, **{"during": [ex.Prune(0.5), ex.Quantize(4)]} | more)
    Net.trained = 0
    model, records = ex.run(task(evaluate=accuracy), [step])
    found = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    told = {"loss": torch.tensor(records[0].figures["loss_last"]), "outputs": model(X).detach()}
    return found | told | {"samples": torch.tensor(Net.trained)}


WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulated": {"accumulate": 2, "average": 0.9, "keep": "best"},
    "looking at gradients": {"during": [ex.Regrow(0.5, updates=5)]},
}


@pytest.mark.parametrize("more", WAYS.values(), ids=WAYS)
def test_two_processes_give_what_one_gives(more: dict[str, Any], tmp_path: Path) -> None:
    alone = trained(**more)
    one, other = both(tmp_path, lambda: trained(**more))
    samples = [int(each.pop("samples")) for each in (alone, one, other)]
    assert samples[0] == 3 * 47
    assert samples[1:] == [3 * (11 + 11 + 1), 3 * (12 + 12 + 1)]
    for name, tensor in alone.items():
        assert torch.equal(one[name], other[name]), name
        assert torch.allclose(one[name].double(), tensor.double(), rtol=1e-4, atol=1e-5), name


STEPS = [ex.Recover(epochs=1), ex.Prune(0.5), ex.Recover(epochs=4, teacher=0)]


def compressed(out: str, fatal: int = -1) -> dict[str, Any]:
    """A recipe, in which one process is killed in the middle of the second training, unless `fatal` is below 0."""
    state.EVERY_S, state.SHARE = 0.0, 0.0  # in this process, which ends with it

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        calls.extend([1] if any(bool((weight.read() == 0).any()) for weight in sites(alive[0])) else [])
        if fatal == world.rank() and len(calls) == 8:
            os.kill(os.getpid(), signal.SIGKILL)
        return nn.functional.cross_entropy(outputs, targets)

    torch.manual_seed(0)
    alive: list[nn.Module] = []
    calls: list[int] = []

    class Seen(Net):
        def forward(self, x: Tensor) -> Tensor:
            alive[:] = [self]
            return super().forward(x)

    made = ex.Task(Seen(), calibration=[X[:16]], train=BATCHES, loss=loss, evaluate=accuracy)
    folder = Path(out) if not world.rank() else Path(out) / "of another"
    result = ex.compress(made, steps=STEPS, out=out)
    ex.save(result, folder / "again.nxt")
    return {"outputs": result.model(X).detach(), "quality": result.evaluation.compressed.quality, "artifact": result.artifact}


def test_the_first_writes_and_a_killed_process_ends_the_job_with_a_checkpoint_to_go_on_from(tmp_path: Path) -> None:
    out = tmp_path / "out"
    one, other = both(tmp_path / "killed", compressed, str(out), 1)
    assert other is None
    assert isinstance(one, ProcessError)
    assert "a process of this job is gone or does not answer" in str(one)
    kept = sorted(path.name for path in (out / ".work").glob("*.json"))
    assert len(kept) == 2  # the first training and the zeros
    assert len(list((out / ".work").rglob("training-*.pt"))) == 1  # and how far the second was
    one, other = both(tmp_path / "again", compressed, str(out))
    assert torch.equal(one["outputs"], other["outputs"])
    assert torch.allclose(one["outputs"], ex.run(task(), STEPS)[0](X), atol=1e-4)
    assert one["quality"] == other["quality"] == pytest.approx(float(accuracy(ex.load(out / "small.nxt", into=Net())).mean()))
    assert one["artifact"] == other["artifact"] == out / "small.nxt"
    assert (out / "again.nxt").read_bytes() == (out / "small.nxt").read_bytes()
    assert (out / "result.json").is_file()
    assert not (out / "of another").exists()


def test_networks_that_each_process_drew_for_itself_are_refused(tmp_path: Path) -> None:
    def drawn() -> None:
        ex.run(ex.Task(Net(), calibration=[X[:16]]), [ex.Prune(0.5)])

    one, other = both(tmp_path, drawn)
    assert isinstance(one, TaskError)
    assert isinstance(other, TaskError)
    assert "the task's model has other weights in process 1 of 2 than in another" in str(other)


def test_a_search_is_for_one_process(tmp_path: Path) -> None:
    for each in both(tmp_path, lambda: ex.compress(task(), target=ex.Target(compression=4))):
        assert isinstance(each, TargetError)
        assert "by the clock of one process, and there are 2" in str(each)


def sharded() -> dict[str, Any]:
    """A loop of one's own with a network that is sharded; alone, with one that is not."""
    made, steps = ex.Task(plain(), calibration=[X[:16]]), [ex.Prune(0.5), ex.Quantize(4)]
    model, several = ex.prepare(made, steps), world.size() > 1
    if several:
        fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(4):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X[:40]), Y[:40]).backward()
        optimizer.step()
    held = model.state_dict() if not several else get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    whole = ex.prepare(made, steps)
    whole.load_state_dict(held)
    told = []
    for work in (lambda: ex.convert(model), ex.Schedule(model, steps, batches=1).step) if several else ():
        with pytest.raises(TaskError) as error:
            work()
        told.append(str(error.value))
    local = sum(getattr(each, "_local_tensor", each).numel() for each in model.parameters())
    return {"outputs": ex.convert(whole)(X).detach(), "told": told, "held": local}


def plain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), nn.Linear(16, 8))


def test_a_network_that_no_process_holds_whole_trains_in_a_loop_of_ones_own(tmp_path: Path) -> None:
    alone = sharded()
    for each in both(tmp_path, sharded):
        assert torch.allclose(each["outputs"], alone["outputs"], atol=1e-5)
        assert each["held"] == alone["held"] / 2
        assert (
            "convert takes a whole model, and '1.bias' is sharded over several processes; load its full state" in each["told"][0]
        )
        assert "a Schedule tightens whole weights, and '1.bias' is sharded" in each["told"][1]


def test_more_devices_than_processes_are_refused() -> None:
    with pytest.raises(RangeError, match=r"devices=2 asks for as many processes, and there is 1; start the script by torchrun"):
        ex.run(task(), [ex.Recover(devices=2)])


def test_what_the_first_raises_all_raise(tmp_path: Path) -> None:
    def work() -> None:
        def fail() -> None:
            raise RangeError(f"in process {world.rank()}")

        world.first(fail)

    assert [str(each) for each in both(tmp_path, work)] == ["in process 0", "in process 0"]


def test_a_process_that_one_of_them_starts_is_none_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(world.STARTED, str(os.getppid()))  # as it is inherited
    assert world.size() == 1


def test_the_first_trains_alone_where_it_works_alone(tmp_path: Path) -> None:
    def work() -> tuple[int, dict[str, Tensor]]:
        return world.size(), world.first(trained)

    (size, one), (_, other) = both(tmp_path, work)
    assert size == 2
    assert int(one["samples"]) == 3 * 47
    assert torch.equal(one["outputs"], other["outputs"])


def test_items_are_drawn_alike_and_what_happens_between_them_is_not(tmp_path: Path) -> None:
    def work() -> list[Any]:
        torch.manual_seed(3)
        found = []
        for item in world.steady((torch.rand(2) for _ in range(3)), seed=0):
            found.append((item, torch.rand(1 + world.rank())))
        return found

    torch.manual_seed(3)
    alone = [torch.rand(2) for _ in range(3)]
    one, other = both(tmp_path, work)
    for item, (mine, drawn), (others, differently) in zip(alone, one, other, strict=True):
        assert torch.equal(item, mine)
        assert torch.equal(item, others)
        assert not torch.equal(drawn, differently[:1])
