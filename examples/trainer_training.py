"""Pruning and quantization inside a training by the Hugging Face Trainer: one callback. Nothing is downloaded: a tiny BERT reads
digits, four pixels a word. Runs in seconds; pip install transformers accelerate."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

import enxuto as ex
from enxuto import data

GREYS = 3  # of a pixel; a word is four of them


def words(images: Tensor) -> Tensor:
    """Shapes: [samples, 1, 8, 8] -> word numbers [samples, 16]."""
    greys = ((images - images.min()) / (images.max() - images.min()) * (GREYS - 1)).round()
    patches = torch.nn.functional.unfold(greys, kernel_size=2, stride=2)  # [samples, 4, 16]
    return (patches * GREYS ** torch.arange(4.0)[:, None]).sum(1).long()


def train(net: nn.Module, rows: list[dict[str, Tensor]], folder: str, epochs: int, *callbacks: TrainerCallback) -> None:
    """An ordinary training."""
    arguments = TrainingArguments(
        folder,
        num_train_epochs=epochs,
        per_device_train_batch_size=32,
        learning_rate=3e-3,
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    Trainer(net, arguments, train_dataset=rows, callbacks=[*callbacks]).train()


@torch.no_grad()
def accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """The part that is named right."""
    return float((net.eval()(input_ids=x).logits.argmax(1) == y).float().mean())


def main(epochs: int = 8) -> None:
    """Trains a small network, then trains it again with its compression in view."""
    images = data.load("digits")
    x, y, test = words(images.train_x), images.train_y, (words(images.test_x), images.test_y)
    rows = [{"input_ids": image, "labels": label} for image, label in zip(x, y, strict=True)]
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    sizes |= dict.fromkeys(["hidden_dropout_prob", "attention_probs_dropout_prob"], 0.0)
    config = BertConfig(vocab_size=GREYS**4, max_position_embeddings=16, num_labels=10, initializer_range=0.1, **sizes)
    net = BertForSequenceClassification(config)
    with tempfile.TemporaryDirectory() as folder:
        train(net, rows, folder, epochs)

        task = ex.Task(net, calibration=[{"input_ids": x[:64]}])
        compress = ex.transformers.Compress(task, steps=[ex.Prune(sparsity=0.6), ex.Quantize(bits=4)])
        train(compress.model, rows, folder, epochs, compress)

        before, after = Path(folder) / "before.nxt", Path(folder) / "after.nxt"
        ex.save(net, before)
        ex.save(compress.small, after, original=net)
        again = ex.load(after, into=BertForSequenceClassification(config))
        print(f"{before.stat().st_size:,} bytes, accuracy {accuracy(net, *test):.1%}")
        print(f"{after.stat().st_size:,} bytes, accuracy {accuracy(again, *test):.1%}")


if __name__ == "__main__":
    main()
