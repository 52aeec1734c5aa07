"""Decoded weights that are kept: the same outputs, no more bytes than allowed, and nobody else sees them."""

import copy
import pickle

import pytest
import torch
from tests.toys import ResidualCnn
from torch import Tensor, nn

import enxuto as ex
from enxuto.artifact.digest import digest_of
from enxuto.errors import RangeError
from enxuto.layers.coded import coded_tensors
from enxuto.layers.grids import CodedTensor
from enxuto.layers.kept import recalled


class Words(nn.Module):
    """A tied embedding, a GRU and a Linear: weights of three sizes, one in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.gru, self.fc, self.out = nn.Embedding(50, 16), nn.GRU(16, 12), nn.Linear(12, 16), nn.Linear(16, 50)
        self.out.weight = self.embed.weight

    def forward(self, words: Tensor) -> Tensor:
        return self.out(self.fc(self.gru(self.embed(words))[0]))


WORDS = torch.randint(0, 50, (7, 3))


def coded(step: ex.Quantize | ex.Share, model: nn.Module | None = None, batch: Tensor = WORDS) -> nn.Module:
    model = (model or Words()).eval()
    return step(model, ex.Task(model, calibration=[batch]))[0]


def kept(model: nn.Module) -> set[str]:
    return {name for name, tensor in coded_tensors(model).items() if recalled(tensor) is not None}


@pytest.mark.parametrize("step", [ex.Quantize(bits=8), ex.Quantize(bits=4, per="group", group=16), ex.Share(bits=3)], ids=repr)
def test_outputs_are_the_same_to_the_bit_and_nothing_is_decoded(step, monkeypatch):
    for model, batch in ((Words(), WORDS), (ResidualCnn(), torch.randn(2, 3, 8, 8))):
        small = coded(step, model, batch)
        before = small(batch)
        found = ex.keep_decoded_(small, "1 MB")
        assert found
        assert kept(small) == set(coded_tensors(small))
        with monkeypatch.context() as patch:
            patch.setattr(CodedTensor, "decoded", lambda tensor: pytest.fail("a kept weight was decoded"))
            assert torch.equal(small(batch), before)


def test_the_largest_that_fit_are_kept_and_a_shared_one_once():
    small = coded(ex.Quantize(bits=8))
    assert ex.keep_decoded_(small, "1 MB") == {
        "embed.weight": 3200,
        "gru.weight_ih_l0": 2304,
        "gru.weight_hh_l0": 1728,
        "fc.weight": 768,
    }
    found = ex.keep_decoded_(small, 5000)
    assert found == {"embed.weight": 3200, "gru.weight_hh_l0": 1728}  # the second would be too many
    assert kept(small) == {"embed.weight", "out.weight", "gru.weight_hh_l0"}
    for nothing in (None, "0 MB", 0):
        ex.keep_decoded_(small, 5000)
        assert ex.keep_decoded_(small, nothing) == {}
        assert kept(small) == set()
    with pytest.raises(RangeError, match="limit=-1 is not a number of bytes"):
        ex.keep_decoded_(small, -1)
    with pytest.raises(RangeError, match="limit='much' is not understood"):
        ex.keep_decoded_(small, "much")


def change_codes(model: nn.Module) -> None:
    coded_tensors(model)["fc.weight"].codes.zero_()


def change_scales(model: nn.Module) -> None:
    coded_tensors(model)["fc.weight"].scale.mul_(2)


def load_others(model: nn.Module) -> None:
    model.load_state_dict({name: torch.zeros_like(value) for name, value in model.state_dict().items()})


def write_values(model: nn.Module) -> None:
    model.fc.weight.zero_()  # which nobody keeps, as of any coded layer


@pytest.mark.parametrize("change", [change_codes, change_scales, load_others, write_values])
def test_a_weight_that_changed_is_decoded_again(change):
    one, other = (coded(ex.Quantize(bits=8), copy.deepcopy(model)) for model in [Words()] * 2)
    other.load_state_dict(one.state_dict())
    ex.keep_decoded_(one, "1 MB")
    for model in (one, other):
        change(model)
    assert torch.equal(one(WORDS), other(WORDS))
    assert "fc.weight" not in kept(one)


def test_copies_files_and_names_know_nothing_of_it(tmp_path):
    small = coded(ex.Quantize(bits=8))
    names, bytes_ = digest_of(small), len(pickle.dumps(small))
    ex.save(small, tmp_path / "before.nxt")
    ex.keep_decoded_(small, "1 MB")
    assert digest_of(small) == names
    assert len(pickle.dumps(small)) == bytes_
    assert kept(copy.deepcopy(small)) == set()
    ex.save(small, tmp_path / "after.nxt")
    assert (tmp_path / "after.nxt").read_bytes() == (tmp_path / "before.nxt").read_bytes()


def test_a_model_in_another_type_decodes_again():
    small = coded(ex.Quantize(bits=8))
    ex.keep_decoded_(small, "1 MB")
    small.double()
    assert small(WORDS).dtype == torch.float64
    assert kept(small) == set()
