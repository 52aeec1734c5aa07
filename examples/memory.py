"""Where the memory of a training step goes, and how to train within less. Runs on digits in seconds, offline."""

import torch
from torch.nn import functional

import enxuto
from enxuto import data, zoo
from enxuto.sizes import format_bytes


def main() -> None:
    digits = data.load("digits")
    torch.manual_seed(0)
    model = zoo.build("resnet-8", image_size=digits.image_size)
    batch = digits.train_x[:256], digits.train_y[:256]  # inputs and targets

    # Predict: from shapes alone, nothing is run.
    step = enxuto.memory.predict(model, batch, loss=functional.cross_entropy, optimizer=torch.optim.Adam)
    print(f"a training step of {len(batch[0])} images needs {format_bytes(step.peak_bytes)}:")
    for category, held in step.by_category.items():
        print(f"    {category:<17}{format_bytes(held):>8}")

    # Plan: how to train within two thirds of that? The best way comes first.
    plan = enxuto.memory.plan(model, batch, step.peak_bytes * 2 // 3, loss=functional.cross_entropy)
    for option in plan.options:
        passes = f"{option.accumulation} x {option.batch_size} images"
        layers = f", runs {', '.join(option.checkpoint)} twice" if option.checkpoint else ""
        print(f"within {format_bytes(plan.limit_bytes)}: {option.optimizer} {option.precision}, {passes}{layers}")

    # Train as planned, and watch what it really takes.
    best = plan.best
    optimizer = torch.optim.Adam(model.parameters())
    loader = data.batches(digits.train_x, digits.train_y, best.batch_size)
    with enxuto.memory.checkpointed(model, best.checkpoint), enxuto.memory.watch(model, optimizer) as seen:
        for number, (inputs, targets) in enumerate(loader, 1):
            loss = functional.cross_entropy(model(inputs), targets)
            (loss / best.accumulation).backward()
            if number % best.accumulation == 0:
                optimizer.step()
                optimizer.zero_grad()
    print(f"{seen.steps} steps took at most {format_bytes(seen.peak_bytes)}; the last loss was {loss.item():.2f}")


if __name__ == "__main__":
    main()
