"""What is shipped, and how it is opened: a .nxt file in torch, an .onnx file in ONNX Runtime. Offline, in seconds."""

from pathlib import Path

import onnxruntime

import enxuto
from enxuto import data, zoo


def main(out: Path = Path("out-load-and-run")) -> None:
    digits = data.load("digits")
    model = zoo.train(zoo.build("lenet-5", image_size=8), data.batches(digits.train_x, digits.train_y, 64), epochs=3)
    # No labels: quality is agreement with the original, and its outputs are scores of classes.
    task = enxuto.Task(model, calibration=data.inputs(digits.train_x[:512]), outputs="classes")
    result = enxuto.compress(task, steps=[enxuto.Quantize(bits=8)], out=out)

    # In torch: a fresh network of the same class, and the file. Nothing in the file is ever run or unpickled.
    loaded = enxuto.load(out / "small.nxt", into=zoo.build("lenet-5", image_size=8))
    print(f"small.nxt agrees with the original on {result.evaluation.compressed.quality:.2%} of the samples")
    print("classes in torch:       ", loaded(digits.test_x[:10]).argmax(1).tolist())

    # In ONNX Runtime: no torch and no enxuto are needed.
    session = onnxruntime.InferenceSession(str(out / "small.onnx"))
    (scores,) = session.run(None, {session.get_inputs()[0].name: digits.test_x[:10].numpy()})
    print("classes in ONNX Runtime:", scores.argmax(1).tolist())
    print("labels:                 ", digits.test_y[:10].tolist())

    for entry in enxuto.ledger(out / "small.nxt"):
        print(f"{entry.bytes:>8,} bytes  {entry.kind:<8} {entry.name}")


if __name__ == "__main__":
    main()
