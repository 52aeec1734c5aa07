"""Fills the tables of docs/memory.md and docs/pt-BR/memoria.md, between their markers. Numbers are never typed.

The network is ResNet-20 on inputs of the shape of Fashion-MNIST, with new weights: memory does not depend on their values.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import enxuto as ex
from enxuto import zoo
from enxuto.memory.profile import ACTIVATIONS, CATEGORIES, OPTIMIZER, PHASES, WEIGHTS, Profile
from enxuto.sizes import file_bytes, format_bytes
from enxuto.surgery import duplicate, to_float

BATCH = 128
PAGES = {"en": Path("docs/memory.md"), "pt": Path("docs/pt-BR/memoria.md")}
SGD_MOMENTUM = partial(torch.optim.SGD, momentum=0.9)
Rows = Sequence[Sequence[str | int | None]]

PORTUGUESE = {
    "weights": "pesos",
    "gradients": "gradientes",
    "optimizer states": "estados do otimizador",
    "activations": "ativações",
    "inputs": "entradas",
    "temporaries": "temporários",
    "all": "total",
    "inference": "inferência",
    "training step": "passo de treino",
    "phase": "fase",
    "forward": "ida (forward)",
    "backward": "volta (backward)",
    "update": "atualização (update)",
    "at most": "no máximo",
    "at its end": "no fim",
    "optimizer": "otimizador",
    "SGD with momentum": "SGD com momento",
    "states": "estados",
    "peak of the step": "pico do passo",
    "technique": "técnica",
    "nothing (the original)": "nenhuma (a original)",
    "file": "arquivo",
    "weights at inference": "pesos na inferência",
    "peak of inference": "pico da inferência",
    "batch": "lote",
    "way to train": "modo de treinar",
    "as it is": "como está",
    "half the batch": "metade do lote",
    "batch 32, four passes an update": "lote de 32, quatro passagens por atualização",
    "each block checkpointed": "checkpoint em cada bloco",
}


class Checkpointed(nn.Module):
    """Runs a block again in the backward pass instead of keeping what is inside."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inside, x, use_reentrant=False)


def main() -> None:
    """Rewrites both pages."""
    torch.manual_seed(0)
    model = zoo.build("resnet-20").eval()
    x, y = torch.rand(BATCH, 1, 28, 28), torch.randint(10, (BATCH,))
    inference, training = ex.memory.predict(model, x), _training(model, x, y)
    tables = {
        "glance": _glance({"inference": inference, "training step": training}),
        "phases": _phases(training),
        "batches": _batches(model, x, y),
        "optimizers": _optimizers(model, x, y),
        "techniques": _techniques(model, x, y),
        "ways": _ways(model, x, y),
    }
    for language, page in PAGES.items():
        text = page.read_text(encoding="utf-8")
        for name, rows in tables.items():
            start, end = f"<!-- {name}:start -->", f"<!-- {name}:end -->"
            before, found, rest = text.partition(start)
            if not found or end not in rest:
                raise SystemExit(f"{page} has no place for the table '{name}'; write {start} and {end} there.")
            text = f"{before}{start}\n{_table(rows, language)}{end}{rest.partition(end)[2]}"
        page.write_text(text, encoding="utf-8")
    ex.memory.draw({"inference": inference, "training step": training}, "docs/memory.png")


def _training(model: nn.Module, x: Tensor, y: Tensor, optimizer: object = torch.optim.Adam, **more: object) -> Profile:
    return ex.memory.predict(model, (x, y), loss=F.cross_entropy, optimizer=optimizer, **more)  # type: ignore[arg-type]


def _glance(profiles: Mapping[str, Profile]) -> Rows:
    rows: list[list[str | int | None]] = [["", *profiles]]
    rows += [[category, *(profile.by_category[category] or None for profile in profiles.values())] for category in CATEGORIES]
    return [*rows, ["all", *(profile.peak_bytes for profile in profiles.values())]]


def _phases(profile: Profile) -> Rows:
    """What is alive at the fullest and at the last moment of each phase."""
    rows: list[list[str | int | None]] = [["phase", "at most", "at its end", WEIGHTS, "gradients", OPTIMIZER, ACTIVATIONS]]
    for phase in PHASES:
        moments = [at for at, moment in enumerate(profile.moments) if moment.phase == phase]
        end = moments[-1]
        if phase == "forward":  # the loss begins the backward pass; what comes after the update is a new step
            end = next(at for at, moment in enumerate(profile.moments) if moment.phase == "backward") - 1
        held = [int(profile.timeline[category][end]) or None for category in (WEIGHTS, "gradients", OPTIMIZER, ACTIVATIONS)]
        most = max(int(profile.total_bytes[at]) for at in moments if at <= end)
        rows.append([phase, most, int(profile.total_bytes[end]), *held])
    return rows


def _batches(model: nn.Module, x: Tensor, y: Tensor) -> Rows:
    rows: list[list[str | int | None]] = [["batch", "inference", "training step", WEIGHTS, ACTIVATIONS]]
    for size in (1, 16, BATCH, 4 * BATCH):
        step = _training(model, x, y, batch_size=size)
        resting = ex.memory.predict(model, x, batch_size=size)
        rows.append([f"{size}", resting.peak_bytes, step.peak_bytes, step.by_category[WEIGHTS], step.activation_bytes])
    return rows


def _optimizers(model: nn.Module, x: Tensor, y: Tensor) -> Rows:
    rows: list[list[str | int | None]] = [["optimizer", "states", "peak of the step"]]
    makers = {"SGD": torch.optim.SGD, "SGD with momentum": SGD_MOMENTUM, "Adam": torch.optim.Adam}
    for name, maker in makers.items():
        profile = _training(model, x, y, maker)
        rows.append([name, int(profile.timeline[OPTIMIZER].max()) or None, profile.peak_bytes])
    return rows


def _techniques(model: nn.Module, x: Tensor, y: Tensor) -> Rows:
    """The file, an inference and a training step of what each step leaves, or of the original."""
    task = ex.Task(model, calibration=[x], train=[(x, y)], loss=F.cross_entropy)
    steps: dict[str, list[object]] = {
        "nothing (the original)": [],
        "`Prune(sparsity=0.9)`": [ex.Prune(sparsity=0.9)],
        "`PruneChannels(macs=0.5)`": [ex.PruneChannels(macs=0.5)],
        "`Factorize(rank=8)`": [ex.Factorize(rank=8)],
        "`Quantize(bits=8)`": [ex.Quantize(bits=8)],
        "`Quantize(bits=4)`": [ex.Quantize(bits=4)],
    }
    rows: list[list[str | int | None]] = [["technique", "file", "weights at inference", "peak of inference", "training step"]]
    for name, recipe in steps.items():
        small = ex.run(task, recipe)[0] if recipe else model
        resting = ex.memory.predict(small, x)
        # coded weights train as a float leaf that is rounded at every pass: quantization-aware training
        learner = ex.prepare(task, recipe) if name.startswith("`Quantize") else to_float(small)
        step = _training(learner, x, y)
        rows.append([name, _file(small, model), int(resting.timeline[WEIGHTS][0]), resting.peak_bytes, step.peak_bytes])
    return rows


def _file(small: nn.Module, model: nn.Module) -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.nxt"
        ex.save(small, path, original=model)
        return file_bytes(path)


def _ways(model: nn.Module, x: Tensor, y: Tensor) -> Rows:
    lean = duplicate(model)
    for stage in lean.get_submodule("stages").children():
        for name, block in list(stage.named_children()):
            setattr(stage, name, Checkpointed(block))
    rows: list[tuple[str, Profile | int]] = [
        ("as it is", _training(model, x, y)),
        ("half the batch", _training(model, x, y, batch_size=BATCH // 2)),
        ("batch 32, four passes an update", _accumulated(model, x, y, passes=4)),
        ("each block checkpointed", _training(lean, x, y)),
        ("bf16-mixed", _training(model, x, y, precision="bf16-mixed")),
        ("bf16-true", _training(model, x, y, precision="bf16-true")),
    ]
    peaks = [[name, found if isinstance(found, int) else found.peak_bytes] for name, found in rows]
    return [["way to train", "peak of the step"], *peaks]


def _accumulated(model: nn.Module, x: Tensor, y: Tensor, passes: int) -> int:
    """The peak of an update from several passes, seen in a real loop."""
    model = duplicate(model).train()
    optimizer = torch.optim.Adam(model.parameters())
    with ex.memory.watch(model, optimizer, live=False) as seen:
        for _ in range(2):  # the first makes the states
            optimizer.zero_grad()
            for inputs, targets in zip(x.split(BATCH // passes), y.split(BATCH // passes), strict=True):
                F.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
    return seen.profile().peak_bytes


def _table(rows: Rows, language: str) -> str:
    def cell(value: str | int | None) -> str:
        if value is None:
            return "–"
        if isinstance(value, int):
            shown = format_bytes(value)
            return shown.replace(".", ",") if language == "pt" else shown
        return PORTUGUESE.get(value, value) if language == "pt" else value

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cells) + " |\n"

    head, *body = rows
    return (
        line(map(cell, head))
        + line("---" if at == 0 else "---:" for at in range(len(head)))
        + "".join(line(map(cell, row)) for row in body)
    )


if __name__ == "__main__":
    main()
