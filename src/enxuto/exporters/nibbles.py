"""Products with weights of 4 bits, by the runtime's own operator: two codes a byte and a scale for each block of inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import helper

from enxuto.evaluation.session import Array
from enxuto.exporters.graphs import MICROSOFT, Scales, matrix, on_grid

BLOCKS = (128, 64, 32, 16)  # inputs that may share a scale
BLOCK = 32  # where no grid is given
LARGEST_CODE = 7
ACCURACY = 4  # each block of inputs in 8 bits: one sample takes a fourth of the time, at a tenth of the error of the weights


def four(node: onnx.NodeProto, graph: onnx.GraphProto, scales: Scales) -> tuple[Sequence[onnx.NodeProto], Mapping[str, Array]]:
    """A product on the 4-bit grid that its weight has, if the operator can have it, else with a scale for each block."""
    weight, name = matrix(node, graph), node.input[1]
    codes, scale, block = packed(weight, scales.tensors.get(name))
    inputs = [node.input[0], f"{name}_nibbles", f"{name}_blocks", "", "", *node.input[2:3]]
    told = {"N": weight.shape[0], "K": weight.shape[1], "bits": 4, "block_size": block, "accuracy_level": ACCURACY}
    made = helper.make_node("MatMulNBits", inputs, node.output, name=node.name, domain=MICROSOFT, **told)
    return [made], {f"{name}_nibbles": codes, f"{name}_blocks": scale}


def packed(weight: Array, given: Array | None) -> tuple[Array, Array, int]:
    """Two codes a byte, a scale a block, and how many inputs a block has.

    Shapes: weight [out, in]; given [out] or [out, groups] or None -> uint8 [out, blocks, size / 2], float32 [out * blocks].
    """
    out, inputs = weight.shape
    block = _block(inputs, given)
    blocks = -(-inputs // block)
    rows = np.zeros((out, blocks * block), dtype=np.float32)
    rows[:, :inputs] = weight
    known = None
    if given is not None and (out * blocks) % given.size == 0:
        known = np.repeat(given.reshape(-1), out * blocks // given.size)
    codes, scale = on_grid(rows.reshape(-1, block), known, LARGEST_CODE)
    shifted = (codes + 8).astype(np.uint8).reshape(out, blocks, block)
    return shifted[..., 0::2] | (shifted[..., 1::2] << 4), scale, block


def unpacked(codes: Array, scale: Array) -> Array:
    """The values again. Shapes: uint8 [out, blocks, size / 2], float32 [out * blocks] -> [out, blocks * size]."""
    out, blocks, _ = codes.shape
    signed = np.stack([codes & 15, codes >> 4], -1).astype(np.int16).reshape(out, blocks, -1) - 8
    values: Array = (signed * scale.reshape(out, blocks, 1)).astype(np.float32).reshape(out, -1)
    return values


def _block(inputs: int, given: Array | None) -> int:
    """The largest number of inputs that are whole in a group."""
    groups = given.shape[1] if given is not None and given.ndim == 2 else 1
    whole = [size for size in BLOCKS if inputs % groups == 0 and (inputs // groups) % size == 0]
    return whole[0] if groups > 1 and whole else BLOCK
