"""The callback in trainings by Lightning itself: when it acts, what its checkpoints hold, what is left alone."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import enxuto as ex
from enxuto.errors import TaskError
from enxuto.sites import sites
from toys import photograph, unchanged

lightning = pytest.importorskip("lightning")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # of Lightning about itself

X = torch.randn(44, 8, generator=torch.Generator().manual_seed(1))
Y = torch.arange(44) % 5
STEPS = [ex.Prune(0.5), ex.Quantize(4)]
UPDATES = 12  # 4 epochs of 6 batches, the last of which is short, two batches an update


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 5))


class Module(lightning.LightningModule):  # type: ignore[misc]
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"net": net})
        self.seen: set[int] = set()

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return nn.functional.cross_entropy(self.inner["net"](batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        self.seen = {id(parameter) for parameter in self.parameters()}
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def fitted(folder: Path, ckpt: Path | None = None, steps: Any = STEPS, **arguments: Any) -> tuple[Any, Module, Any]:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    net = network()
    compress = ex.lightning.Compress(ex.Task(net, calibration=[X[:8]]), steps)
    module = Module(net)
    keep = lightning.pytorch.callbacks.ModelCheckpoint(folder, filename="{step}", every_n_train_steps=3, save_top_k=-1)
    quiet = dict.fromkeys(["logger", "enable_progress_bar", "enable_model_summary"], False)
    given = {"max_epochs": 4, "accumulate_grad_batches": 2, "accelerator": "cpu", "callbacks": [compress, keep]}
    trainer = lightning.Trainer(**quiet, **given | arguments)
    trainer.fit(module, DataLoader(TensorDataset(X, Y), batch_size=8), ckpt_path=ckpt)
    return compress, module, trainer


def test_what_ships_is_compressed_and_the_original_stays(tmp_path: Path) -> None:
    compress, module, trainer = fitted(tmp_path)
    assert trainer.global_step == compress.course.schedule.done == UPDATES  # accumulated batches are one update
    assert unchanged(compress.course.task.model, photograph(network()))
    assert module.inner["net"] is compress.course.model
    assert module.seen == {id(parameter) for parameter in compress.course.model.parameters()}
    weights = [weight.read() for weight in sites(compress.small)]
    assert sum(int((each == 0).sum()) for each in weights) >= sum(each.numel() for each in weights) // 2
    ex.save(compress.small, tmp_path / "small.nxt", original=compress.course.task.model)
    assert torch.equal(ex.load(tmp_path / "small.nxt", into=network())(X), compress.small(X))


@pytest.mark.parametrize("done", [3, 9])
def test_a_checkpoint_of_lightning_goes_on_to_the_same_bits(done: int, tmp_path: Path) -> None:
    """Before the grids are on, and behind; at the end of an epoch, since Lightning itself begins its loader anew."""
    whole = fitted(tmp_path)[0].small
    again, _, trainer = fitted(tmp_path, ckpt=tmp_path / f"step={done}.ckpt")
    assert trainer.global_step == again.course.schedule.done == UPDATES
    assert torch.equal(again.small(X), whole(X))


def test_steps_that_look_at_gradients_are_shown_them(tmp_path: Path) -> None:
    compress, _, _ = fitted(tmp_path, steps=[ex.Regrow(0.5, updates=4)])
    now = [weight.read() != 0 for weight in sites(compress.small)]
    first = [weight.read() != 0 for weight in sites(ex.prepare(ex.Task(network(), calibration=[X]), [ex.Regrow(0.5)]))]
    assert sum(int(each.sum()) for each in now) <= sum(each.numel() for each in now) // 2
    assert any(not torch.equal(a, b) for a, b in zip(first, now, strict=True))


def test_a_network_that_the_module_does_not_hold_is_refused() -> None:
    compress = ex.lightning.Compress(ex.Task(network(), calibration=[X[:8]]), STEPS)
    with pytest.raises(
        TaskError, match=r"Sequential, is no part of Module, which holds 'inner'; keep the network in an attribute"
    ):
        compress.setup(None, Module(network()), "fit")


def test_a_training_without_an_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="does not know how many batches"):
        fitted(tmp_path, max_epochs=-1)
