"""Recurrent layers of a free length: while torch traces them, their outputs are made from shapes, not step by step.

torch keeps a GRU or an LSTM whole in the graph, but learns the shapes of its outputs by unrolling it, which fixes the length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from torch import Tensor
from torch._decomp import decompositions


@contextmanager
def any_length() -> Iterator[None]:
    """Inside, nn.GRU and nn.LSTM can be traced with a sequence axis that is free."""
    unrolled: Any = decompositions.one_layer_rnn

    def rnn(inputs: Tensor, hidden: Tensor, params: Sequence[Tensor], biases: bool, hidden_fn: Any, reverse: bool = False) -> Any:
        if hidden_fn is not decompositions.gru_cell:  # only a GRU stays whole; a plain RNN is written step by step
            return unrolled(inputs, hidden, params, biases, hidden_fn, reverse)
        return inputs.new_empty(inputs.shape[0], *hidden.shape), hidden.clone()

    def lstm(inputs: Tensor, hidden: Sequence[Tensor], params: Sequence[Tensor], biases: bool, reverse: bool = False) -> Any:
        return inputs.new_empty(inputs.shape[0], *hidden[0].shape), (hidden[0].clone(), hidden[1].clone())

    with patch.multiple(decompositions, one_layer_rnn=rnn, one_layer_lstm=lstm, mkldnn_one_layer_lstm=lstm):
        yield
