"""Recurrent classifiers: the rows of an image are the steps of a sequence; the mean of the outputs is classified."""

from __future__ import annotations

from torch import Tensor, nn


class GRUClassifier(nn.Module):
    """A GRU over the rows of the image.

    Shapes: images [batch, in_channels, height, image_size] -> scores [batch, classes].
    Source: Cho et al. 2014, Learning Phrase Representations using RNN Encoder-Decoder, section 2.3.
    """

    def __init__(
        self,
        *,
        image_size: int = 28,
        in_channels: int = 1,
        classes: int = 10,
        hidden: int = 128,
        layers: int = 1,
        bidirectional: bool = False,
    ) -> None:
        super().__init__()
        row = in_channels * image_size
        self.gru = nn.GRU(row, hidden, num_layers=layers, bidirectional=bidirectional, batch_first=True)
        self.fc = nn.Linear(2 * hidden if bidirectional else hidden, classes)

    def forward(self, images: Tensor) -> Tensor:
        outputs, _ = self.gru(rows(images))
        return self.fc(outputs.mean(dim=1))


class LSTMClassifier(nn.Module):
    """An LSTM over the rows of the image.

    Shapes: images [batch, in_channels, height, image_size] -> scores [batch, classes].
    Source: Hochreiter, Schmidhuber 1997, Long Short-Term Memory; with the forget gate of Gers et al. 2000.
    """

    def __init__(
        self,
        *,
        image_size: int = 28,
        in_channels: int = 1,
        classes: int = 10,
        hidden: int = 128,
        layers: int = 1,
        bidirectional: bool = False,
    ) -> None:
        super().__init__()
        row = in_channels * image_size
        self.lstm = nn.LSTM(row, hidden, num_layers=layers, bidirectional=bidirectional, batch_first=True)
        self.fc = nn.Linear(2 * hidden if bidirectional else hidden, classes)

    def forward(self, images: Tensor) -> Tensor:
        outputs, _ = self.lstm(rows(images))
        return self.fc(outputs.mean(dim=1))


def rows(images: Tensor) -> Tensor:
    """The rows of each image as a sequence: [batch, channels, height, width] -> [batch, height, channels * width]."""
    return images.transpose(1, 2).flatten(2)
