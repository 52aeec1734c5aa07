"""A task for enxuto: what is compressed, and what is needed to do it well.

Works as it stands, on the digits that come with scikit-learn; replace each part with your own:

    enxuto inspect task.py
    enxuto compress task.py --size 12kB --max-drop 1% --time 1m --out out/
    enxuto evaluate task.py out/small.nxt
"""

from torch import Tensor, nn
from torch.nn import functional

import enxuto
from enxuto import data, zoo


class Net(nn.Module):
    """The network. Import yours, or write it here; any torch.nn.Module will do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.fc1 = nn.Linear(32 * 4 * 4, 64)
        self.fc2 = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = functional.relu(self.conv1(images))
        x = functional.max_pool2d(functional.relu(self.conv2(x)), 2)
        return self.fc2(functional.relu(self.fc1(x.flatten(1))))


def task() -> enxuto.Task:
    """Everything enxuto needs to know. Only the model and `calibration` must be there."""
    digits = data.load("digits")  # 1,197 images to train on, 200 for validation and 400 to test
    batches = data.batches(digits.train_x, digits.train_y, 64)

    # The trained network. Yours is probably on disk: model = Net(); model.load_state_dict(torch.load("net.pt"))
    model = zoo.train(Net(), batches, epochs=8)

    return enxuto.Task(
        model,
        # Batches of inputs alone, without labels, as the model is called: a tensor, a tuple of arguments or a dict.
        calibration=data.inputs(digits.train_x[:512], 128),
        # Quality on validation data, higher is better: a function of the model that gives one number or, better, one
        # value per sample. Without it, quality is agreement with the outputs of the original network, and `outputs` says
        # what those are: "classes" (a score for each), "values" (all else), or a dict of both by the output's name.
        evaluate=data.accuracy(digits.validation_x, digits.validation_y),
        outputs="classes",
        # Batches of (inputs, targets) and loss(outputs, targets): to win back what compression loses.
        train=batches,
        loss=functional.cross_entropy,
        # Like evaluate, on data that nothing else has seen. Called once, at the very end.
        test=data.accuracy(digits.test_x, digits.test_y),
    )
