"""Fills the tables of docs/memory.md and docs/pt-BR/memoria.md, between their markers. Numbers are never typed.

The network is ResNet-20 on inputs of the shape of Fashion-MNIST, with new weights: memory does not depend on their values.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import enxuto as ex
from enxuto import zoo
from enxuto.memory.profile import ACTIVATIONS, CATEGORIES, OPTIMIZER, PHASES, WEIGHTS, Profile
from enxuto.sizes import file_bytes, format_bytes
from enxuto.surgery import to_float

BATCH = 128
PAGES = {"en": Path("docs/memory.md"), "pt": Path("docs/pt-BR/memoria.md")}
SGD_MOMENTUM = partial(torch.optim.SGD, momentum=0.9)
RESULTS = Path("bench/results")
LIMITS = ("160 MB", "120 MB", "80 MB", "40 MB", "10 MB")
LIMIT = "80 MB"
OPTION = ("batch", "passes", "blocks checkpointed", "peak", "time", "gradients")
COMMA = re.compile(r"(?<=\d)\.(?=\d)")
STEP = """
import torch
from torch import nn
model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 10))
x, y = torch.randn(16, 1, 8, 8), torch.randint(10, (16,))
"""
PROCESSES = {
    "started Python": "",
    "imported torch": "import torch",
    "trained a tiny network with Adam": f"""{STEP}
optimizer = torch.optim.Adam(model.parameters())
for _ in range(3):
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
""",
    "done so with `Recover`": f"""{STEP}
import enxuto as ex
task = ex.Task(model, calibration=[x], train=[(x, y)], loss=nn.functional.cross_entropy)
ex.run(task, [ex.Recover(epochs=1, memory="1 MB")])
""",
}
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
    "limit": "limite",
    "largest batch as it is": "maior lote sem mudar nada",
    "precision": "precisão",
    "passes": "passagens",
    "blocks checkpointed": "blocos com checkpoint",
    "peak": "pico",
    "time": "tempo",
    "of the batch": "do lote inteiro",
    "batch norms see parts": "batch norms veem partes",
    "a process that has": "um processo que",
    "the whole process (RSS)": "o processo inteiro (RSS)",
    "started Python": "só abriu o Python",
    "imported torch": "importou o torch",
    "trained a tiny network with Adam": "treinou uma rede minúscula com Adam",
    "done so with `Recover`": "fez isso com o `Recover`",
    "device": "dispositivo",
    "numbers": "números",
    "fits": "cabe",
    "RAM needed": "RAM necessária",
    "of": "de",
    "flash needed": "flash necessária",
    "yes": "sim",
    "no": "não",
    "cases": "casos",
    "within 3 %": "até 3 % de erro",
    "worst error": "pior erro",
    "where": "onde",
    "rule of thumb, of the truth": "regra prática, em relação ao real",
    "network": "rede",
    "chosen by": "escolhido por",
    "planned": "plano",
    "planned + 1": "plano + 1",
    "rule of thumb": "regra prática",
    "measured": "medido",
    "checkpoints": "checkpoints",
    "none": "nenhum",
    "plan": "plano",
    "every block": "todos os blocos",
    "saved": "economia",
    "same gradients": "mesmos gradientes",
    "operators a step": "operadores por passo",
    "watched": "acompanhado",
    "recorded": "gravado",
}


def main() -> None:
    """Rewrites both pages."""
    torch.manual_seed(0)
    model = zoo.build("resnet-20").eval()
    x, y = torch.rand(BATCH, 1, 28, 28), torch.randint(10, (BATCH,))
    inference, training = ex.memory.predict(model, x), _training(model, x, y)
    best, every = _limits(model, x, y)
    tables = {
        "glance": _glance({"inference": inference, "training step": training}),
        "phases": _phases(training),
        "batches": _batches(model, x, y),
        "optimizers": _optimizers(model, x, y),
        "techniques": _techniques(model, x, y),
        "ways": _ways(model, x, y),
        "limits": best,
        "plan": every,
        "process": _process(),
        "devices": _devices(model, x),
        "accuracy": _accuracy(),
        "kept": _kept(),
        "checkpoints": _checkpoints(),
        "watching": _watching(),
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
    blocks = [path for path, module in model.named_modules() if path.startswith("stages.") and path.count(".") == 2]
    with ex.memory.checkpointed(model, blocks):
        checkpointed = _training(model, x, y)
    rows = [
        ("as it is", _training(model, x, y)),
        ("half the batch", _training(model, x, y, batch_size=BATCH // 2)),
        ("batch 32, four passes an update", _training(model, x, y, batch_size=BATCH // 4, accumulation=4)),
        ("each block checkpointed", checkpointed),
        ("bf16-mixed", _training(model, x, y, precision="bf16-mixed")),
        ("bf16-true", _training(model, x, y, precision="bf16-true")),
    ]
    return [["way to train", "peak of the step"], *([name, profile.peak_bytes] for name, profile in rows)]


def _limits(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Rows, Rows]:
    """The best way within each limit, and all ways within one of them."""
    best: list[list[str | int | None]] = [["limit", "largest batch as it is", *OPTION]]
    every: list[list[str | int | None]] = [["optimizer", "precision", *OPTION]]
    for limit in LIMITS:
        plan = ex.memory.plan(model, (x, y), limit, loss=F.cross_entropy)
        best.append([plan.limit_bytes, f"{plan.largest_batch}", *_option(plan.best)])
        if limit == LIMIT:
            every += [[option.optimizer, option.precision, *_option(option)] for option in plan.options]
    return best, every


def _option(option: ex.memory.Option) -> list[str | int | None]:
    layers = f"{len(option.checkpoint)}" if option.checkpoint else None
    time = None if option.time is None else f"{option.time:.2f}x"
    gradients = "of the batch" if option.exact else "batch norms see parts"
    return [f"{option.batch_size}", f"{option.accumulation}", layers, option.peak_bytes, time, gradients]


def _process() -> Rows:
    """What whole processes hold that have hardly a tensor."""
    rows: list[list[str | int | None]] = [["a process that has", "the whole process (RSS)"]]
    for name, code in PROCESSES.items():
        shown = "\nimport os; print(int(open('/proc/self/statm').read().split()[1]) * os.sysconf('SC_PAGE_SIZE'))"
        done = subprocess.run([sys.executable, "-c", code + shown], capture_output=True, text=True, check=True)
        rows.append([name, round(int(done.stdout), -7)])  # to 10 MB: it differs from run to run
    return rows


def _devices(model: nn.Module, x: Tensor) -> Rows:
    rows: list[list[str | int | None]] = [["device", "numbers", "fits", "RAM needed", "of", "flash needed", "of"]]
    for name in ("cortex-m4", "esp32-s3", "raspberry-pi-zero"):
        for bits in (32, 8):
            fit = ex.memory.fits(model, x, name, bits=bits)  # type: ignore[arg-type]
            needs = [fit.ram_bytes, fit.device.ram_bytes, fit.flash_bytes, fit.device.flash_bytes]
            rows.append([name, f"{bits} bits", "yes" if fit.fits else "no", *needs])
    return rows


def _measured(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((RESULTS / f"memory_{name}.json").read_text(encoding="utf-8"))
    return document


def _accuracy() -> Rows:
    """How far predictions were from what the allocator reported, and the rule of thumb beside them."""
    rows: list[list[str | int | None]] = [["", "cases", "within 3 %", "worst error", "where", "rule of thumb, of the truth"]]
    for name, which in (("training step", "predict_training"), ("inference", "predict_inference")):
        cases = _measured(which)["rows"]
        errors = [abs(case["predicted / measured"] - 1) for case in cases]
        worst = cases[errors.index(max(errors))]
        thumb = [case["rule of thumb / measured"] for case in cases]
        near = f"{sum(error <= 0.03 for error in errors)}"
        where = f"{worst['network']}, {worst['precision']}"
        rows.append([name, f"{len(cases)}", near, _percent(max(errors), 1), where, f"{min(thumb):.2f} – {max(thumb):.2f}"])
    return rows


def _kept() -> Rows:
    """Planned batches in real processes."""
    rows: list[list[str | int | None]] = [["network", "limit", "chosen by", "batch", "measured", "fits"]]
    for row in _measured("plan")["rows"]:
        bytes_ = int(row["measured MB"] * 1e6)
        fits = "yes" if row["fits"] else "no"
        rows.append([row["network"], row["limit"], row["chosen by"], f"{row['batch']}", bytes_, fits])
    return rows


def _checkpoints() -> Rows:
    rows: list[list[str | int | None]] = [["network", "checkpoints", "activations", "saved", "time", "same gradients"]]
    for row in _measured("checkpoint")["rows"]:
        held, same = int(row["activations MB"] * 1e6), "yes" if row["same gradients"] else "no"
        rows.append([row["network"], row["checkpoints"], held, _percent(row["saved"]), f"{row['time']:.2f}x", same])
    return rows


def _watching() -> Rows:
    rows: list[list[str | int | None]] = [["network", "operators a step", "watched", "recorded"]]
    for row in _measured("watch")["rows"]:
        rows.append([row["network"], f"{row['operators']}", f"{row['watch']:.2f}x", f"{row['record']:.2f}x"])
    return rows


def _percent(part: float, digits: int = 0) -> str:
    return f"{100 * part:.{digits}f} %"


def _table(rows: Rows, language: str) -> str:
    def cell(value: str | int | None) -> str:
        if value is None:
            return "–"
        if isinstance(value, int):
            shown = format_bytes(value)
            return shown.replace(".", ",") if language == "pt" else shown
        return PORTUGUESE.get(value, COMMA.sub(",", value) if value[:1].isdigit() else value) if language == "pt" else value

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
