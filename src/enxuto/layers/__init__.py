"""Modules with physically small weights: coded layers, low-rank layers, and the leaves that rehearse them in training."""

from enxuto.layers.activations import ActivationGrid
from enxuto.layers.coded import Coded, code_, decode_, weight_names
from enxuto.layers.grids import Affine, AffineTensor, CodedTensor, Grid, Table, TableTensor
from enxuto.layers.lowrank import LowRankConv, LowRankLinear, TuckerConv
from enxuto.layers.rehearsal import Rehearsal

__all__ = [
    "ActivationGrid",
    "Affine",
    "AffineTensor",
    "Coded",
    "CodedTensor",
    "Grid",
    "LowRankConv",
    "LowRankLinear",
    "Rehearsal",
    "Table",
    "TableTensor",
    "TuckerConv",
    "code_",
    "decode_",
    "weight_names",
]
