"""Real data in memory: load a data set, cut it into batches, count what a network gets right."""

from enxuto.data.batches import Accuracy, Batches, accuracy, batches, inputs
from enxuto.data.dataset import SOURCES, Dataset, load

__all__ = ["SOURCES", "Accuracy", "Batches", "Dataset", "accuracy", "batches", "inputs", "load"]
