"""A grid that the house does not know moves in with one file and a line: coded, trained, saved, loaded, exported, reported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tests.toys import Mlp, output, task_of
from torch import Tensor

import enxuto as ex
from enxuto.artifact.structure import GRIDS
from enxuto.encode import code_weights_, rehearse_on_
from enxuto.layers.grids import CodedTensor, Grid, Values, finite
from enxuto.layers.packing import pack
from enxuto.sites import sites
from enxuto.surgery import duplicate


@dataclass(frozen=True)
class Powers(Grid):
    """Zero, and a unit times 1, 1/2, 1/4 and so on, of either sign."""

    bits: int = 4

    def encode(self, weight: Tensor, path: str = "") -> PowersTensor:
        return PowersTensor.of(self, finite(weight, path), weight.detach().abs().max().float().view(1))

    def learned(self, base: Tensor, change: Tensor) -> Tensor:
        return base * change.exp()

    def seen(self, weight: Tensor, learned: Tensor) -> Tensor:
        on_grid = PowersTensor.of(self, weight, learned)()
        relative = (on_grid / learned).detach()
        return relative * learned + (weight - weight.detach())

    def coded(self, weight: Tensor, learned: Tensor) -> PowersTensor:
        return PowersTensor.of(self, weight, learned)


class PowersTensor(CodedTensor):
    """Codes and the unit: an even code is a positive power, an odd one a negative, the last is zero."""

    kind = "powers"
    unit: Tensor

    def __init__(self, grid: Powers, shape: torch.Size | tuple[int, ...], dtype: torch.dtype = torch.float32) -> None:
        super().__init__(grid, shape, dtype)
        self.register_buffer("unit", torch.ones(1))

    @classmethod
    def of(cls, grid: Powers, weight: Tensor, unit: Tensor) -> PowersTensor:
        made = cls(grid, weight.shape, weight.dtype)
        made.unit = unit.detach().float()
        entries = made._entries()
        codes = (weight.detach().float().reshape(-1, 1) - entries).abs().argmin(1)
        made.codes = pack(codes.to(torch.uint8), grid.bits)
        return made

    def _entries(self) -> Tensor:
        code = torch.arange(2**self.grid.bits)
        values = self.unit * torch.exp2(-(code // 2).float()) * (1 - 2 * (code % 2))
        return torch.where(code == 2**self.grid.bits - 1, 0.0, values)

    def _decoded(self, codes: Tensor, rows: slice) -> Tensor:
        return self._entries()[codes]

    def values(self) -> Values:
        return Values(torch.ones(()).expand(self.shape), 1, self._entries().unique())

    def recode(self, weight: Tensor) -> PowersTensor:
        return PowersTensor.of(self.grid, weight, self.unit)  # type: ignore[arg-type]

    def take(self, dim: int, keep: Tensor, path: str = "") -> PowersTensor:
        return self.recode(self().index_select(dim, keep))

    def learning(self) -> Tensor:
        return self.unit.clone()

    def told(self) -> list[Any]:
        return [self.kind, self.grid.bits]

    @classmethod
    def untold(cls, arguments: Sequence[Any], shape: tuple[int, ...], dtype: torch.dtype) -> PowersTensor:
        return cls(Powers(*arguments), shape, dtype)

    def could_be(self, leaf: str, shape: tuple[int, ...], dtype: torch.dtype, symbols: int | None) -> bool:
        return super().could_be(leaf, shape, dtype, symbols) or (leaf == "unit" and shape == (1,) and dtype == torch.float32)


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(GRIDS, PowersTensor.kind, PowersTensor)


@pytest.mark.usefixtures("known")
def test_it_is_saved_loaded_pruned_exported_and_told_of(tmp_path):
    task = task_of(Mlp)
    model = duplicate(task.model)
    changes, _ = code_weights_(sites(model), Powers())
    assert "4 bits, 16 values" in changes[0].what
    ex.save(model, tmp_path / "small.nxt", original=task.model)
    loaded = ex.load(tmp_path / "small.nxt", into=task.model)
    assert all(isinstance(each.tensor, PowersTensor) for each in sites(loaded))
    assert torch.equal(output(loaded, task.sample), output(model, task.sample))
    pruned, _ = ex.Prune(0.5)(model, task)
    assert all(isinstance(each.tensor, PowersTensor) for each in sites(pruned))
    assert float(torch.cat([each.read().flatten() == 0 for each in sites(pruned)]).float().mean()) >= 0.49
    smaller, _ = ex.PruneChannels(sparsity=0.25)(model, task)
    assert any(isinstance(each.tensor, PowersTensor) for each in sites(smaller))
    written = ex.export(model, tmp_path / "small.onnx", calibration=task.calibration)
    assert written.path.stat().st_size > 0


@pytest.mark.usefixtures("known")
def test_it_learns_in_a_users_loop():
    task = task_of(Mlp)
    model = duplicate(task.model)
    rehearse_on_(model, "*", Powers(), now=True)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    wanted = torch.randn_like(output(task.model, task.sample))
    losses = []
    for _ in range(20):
        loss = (model(task.sample) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    trained = output(model, task.sample)
    frozen = ex.convert(model)
    assert all(isinstance(each.tensor, PowersTensor) for each in sites(frozen))
    assert torch.allclose(output(frozen, task.sample), trained, atol=1e-6)
