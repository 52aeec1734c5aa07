"""The callback in trainings by the Hugging Face Trainer itself: when it acts, what its checkpoints hold, what is left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import enxuto as ex
from enxuto.errors import ArtifactError, TaskError
from toys import photograph, unchanged

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

WORDS = torch.randint(0, 32, (40, 8), generator=torch.Generator().manual_seed(0))
ROWS = [{"input_ids": words, "labels": words[0] % 3} for words in WORDS]
BATCH = {"input_ids": WORDS[:8]}
UPDATES = 6


def network() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.BertConfig(vocab_size=32, max_position_embeddings=8, num_labels=3, **sizes)
    return transformers.BertForSequenceClassification(config).eval()


def trainer(folder: Path, model: Any, *callbacks: Any) -> Any:
    quiet = {"report_to": [], "disable_tqdm": True, "logging_strategy": "no", "use_cpu": True}
    size = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "learning_rate": 1e-2}
    arguments = transformers.TrainingArguments(str(folder), max_steps=UPDATES, save_steps=2, **quiet, **size)
    return transformers.Trainer(model, arguments, train_dataset=ROWS, callbacks=[*callbacks])


def compressing(folder: Path) -> tuple[Any, Any]:
    task = ex.Task(network(), calibration=[BATCH], outputs="classes")
    compress = ex.transformers.Compress(task, [ex.Prune(0.5), ex.Quantize(4)])
    return compress, trainer(folder, compress.model, compress)


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**BATCH).logits


def test_what_ships_is_compressed_and_a_checkpoint_of_the_trainer_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    compress, running = compressing(tmp_path)
    running.train()
    assert running.state.global_step == compress.course.schedule.done == UPDATES  # accumulated batches are one update
    assert unchanged(compress.course.task.model, photograph(network()))
    ex.save(compress.small, tmp_path / "small.nxt", original=compress.course.task.model)
    assert torch.equal(logits(ex.load(tmp_path / "small.nxt", into=network())), logits(compress.small))
    assert sum(type(module).__name__.startswith("Coded") for module in compress.small.modules()) == 11
    with pytest.raises(ArtifactError, match="save_pretrained keeps plain layers"):
        running.save_model(tmp_path / "pretrained")
    for done in (2, 4):  # before the grids are on, and behind
        again, resumed = compressing(tmp_path)
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{done}"))
        assert again.course.schedule.done == UPDATES
        assert torch.equal(logits(again.small), logits(compress.small))


def test_a_trainer_with_another_network_is_refused(tmp_path: Path) -> None:
    compress, _ = compressing(tmp_path)
    with pytest.raises(TaskError, match=r"BertForSequenceClassification of its own.*Trainer\(compress.model"):
        trainer(tmp_path, network(), compress).train()
