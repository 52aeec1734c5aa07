"""A recipe by hand: a visible list of steps, each of which says what it did to each layer. Seconds, offline."""

from torch.nn import functional

import enxuto
from enxuto import data, zoo


def main() -> None:
    digits = data.load("digits")
    batches = data.batches(digits.train_x, digits.train_y, 64)
    accuracy = data.accuracy(digits.validation_x, digits.validation_y)
    model = zoo.train(zoo.build("lenet-300-100", image_size=8), batches, epochs=5)
    task = enxuto.Task(model, calibration=data.inputs(digits.train_x), train=batches, loss=functional.cross_entropy)

    steps = [
        enxuto.Prune(sparsity=0.9),  # the weights that matter least become zeros
        enxuto.Recover(epochs=5),  # what is left learns to do without them; the zeros stay
        enxuto.Share(bits=4),  # sixteen values a layer: the file holds a 4-bit code for each weight
    ]
    small, records = enxuto.run(task, steps)

    for record in records:
        print(record.step)
        for change in record.changes:
            print(f"    {change.path}: {change.what}")
    print(f"accuracy before {accuracy(model).mean():.4f}, after {accuracy(small).mean():.4f}")


if __name__ == "__main__":
    main()
