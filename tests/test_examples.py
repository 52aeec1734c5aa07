"""Every script a person reads first runs, as it stands, and prints what it promises."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))
SAYS = {
    "compress_by_hand": ("Share(", "accuracy before"),
    "load_and_run": ("classes in ONNX Runtime", "payload"),
    "memory": ("a training step of 256 images needs", "within ", "steps took at most"),
    "one_sentence": ("times smaller", "kept "),
    "own_training_loop": ("bytes, accuracy",),
    "lightning_training": ("bytes, accuracy",),
    "trainer_training": ("bytes, accuracy",),
    "transfer": ("digits 5-9: accuracy", "also 'digits 0-4': "),
}
FASTER = {
    "one_sentence": {"time": "4s"},
    "lightning_training": {"epochs": 2},
    "trainer_training": {"epochs": 1},
    "transfer": {"epochs": 3},
}  # a search takes what it is given


def script(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # of Lightning about itself
@pytest.mark.parametrize("path", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_an_example_runs_and_says_what_it_did(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    script(path).main(**FASTER.get(path.stem, {}))
    printed = capsys.readouterr().out
    for words in SAYS[path.stem]:
        assert words in printed
