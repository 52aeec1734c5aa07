from __future__ import annotations

import torch
from torch import nn

from enxuto.macs import count_macs, total_macs


def counted(module: nn.Module, *inputs: torch.Tensor) -> int:
    return total_macs(module, inputs)


def test_convolutions_count_each_output_position_once() -> None:
    x = torch.randn(2, 6, 9, 9)
    assert counted(nn.Conv2d(6, 4, 3), x) == 7 * 7 * 4 * 6 * 9
    assert counted(nn.Conv2d(6, 4, 3, stride=2, padding=1, bias=False), x) == 5 * 5 * 4 * 6 * 9
    assert counted(nn.Conv2d(6, 12, 3, groups=6), x) == 7 * 7 * 12 * 9
    assert counted(nn.ConvTranspose2d(6, 4, 2, stride=2), x) == 9 * 9 * 6 * 4 * 4


def test_linear_layers_count_each_token() -> None:
    assert counted(nn.Linear(5, 3), torch.randn(2, 7, 5)) == 7 * 15
    assert counted(nn.Bilinear(5, 4, 3), torch.randn(2, 5), torch.randn(2, 4)) == 60


def test_recurrent_layers_count_every_step_direction_and_layer() -> None:
    x = torch.randn(2, 7, 5)
    assert counted(nn.LSTM(5, 3, batch_first=True), x) == 7 * 4 * 3 * (5 + 3)
    two = nn.GRU(5, 3, num_layers=2, bidirectional=True, batch_first=True)
    assert counted(two, x) == 7 * 2 * 3 * 3 * ((5 + 3) + (6 + 3))
    assert counted(nn.GRUCell(5, 3), torch.randn(2, 5)) == 3 * 3 * (5 + 3)


def test_attention_counts_its_projections_and_its_two_products() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    counts = count_macs(layer, torch.randn(3, 5, 8))
    assert counts == {"self_attn": 5 * 4 * 64 + 2 * 5 * 5 * 8, "linear1": 5 * 128, "linear2": 5 * 128}


def test_keys_and_values_of_another_length_are_counted_as_they_are() -> None:
    attention = nn.MultiheadAttention(8, 2, kdim=6, vdim=4, batch_first=True)
    query, key, value = torch.randn(2, 5, 8), torch.randn(2, 7, 6), torch.randn(2, 7, 4)
    assert counted(attention, query, key, value) == 5 * 2 * 64 + 7 * 8 * (6 + 4) + 2 * 5 * 7 * 8


def test_a_layer_that_runs_twice_counts_twice_and_one_that_does_not_counts_zero() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.fc, self.spare = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, words: torch.Tensor) -> torch.Tensor:
            return self.fc(self.fc(self.table(words)))

    counts = count_macs(Twice(), torch.randint(0, 9, (3, 5)))
    assert counts == {"table": 0, "fc": 2 * 5 * 16, "spare": 0}


def test_counting_leaves_no_trace() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout()).train()
    count_macs(model, {"input": torch.randn(2, 4)})
    assert model.training
    assert model[1].training
    assert not model[0]._forward_hooks
