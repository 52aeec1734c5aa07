"""Small reference networks, one file a family, the table of their names, and what trains them."""

from enxuto.zoo.lenet import LeNet5, LeNet300100
from enxuto.zoo.mobilenet import MobileNetV2
from enxuto.zoo.networks import NAMES, NETWORKS, build
from enxuto.zoo.recurrent import GRUClassifier, LSTMClassifier
from enxuto.zoo.resnet import ResNet
from enxuto.zoo.training import Training, train, trained
from enxuto.zoo.transformer import TransformerEncoder

__all__ = [
    "NAMES",
    "NETWORKS",
    "GRUClassifier",
    "LSTMClassifier",
    "LeNet5",
    "LeNet300100",
    "MobileNetV2",
    "ResNet",
    "Training",
    "TransformerEncoder",
    "build",
    "train",
    "trained",
]
