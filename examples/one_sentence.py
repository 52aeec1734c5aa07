"""One sentence is enough: say how small, and how much may be lost; enxuto finds the recipe. About a minute, offline."""

from pathlib import Path

from torch.nn import functional

import enxuto
from enxuto import data, zoo


def main(out: Path = Path("out-one-sentence"), time: str = "20s") -> None:
    digits = data.load("digits")
    batches = data.batches(digits.train_x, digits.train_y, 64)
    model = zoo.train(zoo.build("lenet-5", image_size=8), batches, epochs=5)

    task = enxuto.Task(
        model,
        calibration=data.inputs(digits.train_x[:512]),
        evaluate=data.accuracy(digits.validation_x, digits.validation_y),
        train=batches,
        loss=functional.cross_entropy,
        test=data.accuracy(digits.test_x, digits.test_y),
    )
    target = enxuto.Target(compression=20, max_drop=0.02)
    result = enxuto.compress(task, target=target, time=time, out=out)

    print(f"{result.evaluation.compression:.1f} times smaller, {result.evaluation.quality_change:+.4f} accuracy")
    print(*result.verdict, *result.advice, sep="\n")
    for trial in result.history:
        print("kept " if trial.kept else "tried", f"{trial.file_bytes:>8,} bytes", trial.recipe)


if __name__ == "__main__":
    main()
