"""Modules with physically small weights: coded layers, low-rank layers, and the leaves that rehearse them in training."""

from enxuto.layers.activations import ActivationGrid
from enxuto.layers.affine import Affine, AffineTensor
from enxuto.layers.coded import Coded, code_, decode_, weight_names
from enxuto.layers.grids import CodedTensor, Grid
from enxuto.layers.lowrank import CPConv, KroneckerLinear, LowRankConv, LowRankLinear, TuckerConv
from enxuto.layers.rehearsal import Rehearsal
from enxuto.layers.table import Table, TableTensor

__all__ = [
    "ActivationGrid",
    "Affine",
    "AffineTensor",
    "CPConv",
    "Coded",
    "CodedTensor",
    "Grid",
    "KroneckerLinear",
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
