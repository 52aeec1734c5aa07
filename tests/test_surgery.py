import copy
import pickle
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from enxuto.errors import ArtifactError
from enxuto.layers import Affine, Coded, Table, code_
from enxuto.surgery import duplicate, replace_, to_float
from enxuto.task import Task
from toys import Mlp, ResidualCnn, Tied, output, photograph, seeded, unchanged


def test_a_copy_has_nothing_in_common_with_the_original():
    model = seeded(ResidualCnn).train()
    before = photograph(model)
    copied = duplicate(model)
    for tensor in [*copied.parameters(), *copied.buffers()]:
        tensor.data.zero_()
    copied.eval()
    assert unchanged(model, before)


def test_a_replacement_goes_under_every_name_and_takes_over_the_mode():
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "deep": nn.Sequential(nn.ReLU())})
    model["b"] = model["a"]
    model["deep"].append(model["a"])
    model["a"].eval()
    new = nn.Linear(2, 2)
    replace_(model, "deep.1", new)
    assert model["a"] is model["b"] is model["deep"][1] is new
    assert not new.training


def test_to_float_is_a_plain_model_with_the_same_outputs_and_ties():
    model = seeded(Tied)
    tensor = Table(3).encode(model.embed.weight)
    code_(model.embed, "weight", tensor)
    code_(model.head, "weight", tensor)
    before = photograph(model)
    plain = to_float(model)
    x = torch.arange(6).view(2, 3)
    assert not any(isinstance(module, Coded) for module in plain.modules())
    assert plain.embed.weight is plain.head.weight
    assert torch.equal(output(plain, x), output(model, x))
    assert unchanged(model, before)


def test_a_decoder_leaves_its_cache_out_in_copies_only():
    class Kept:
        def save_pretrained(self, folder):
            raise NotImplementedError

    class Config(Kept):
        use_cache = True

    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.config = nn.Linear(4, 4), Config()

        def forward(self, x):
            return (self.head(x), object()) if self.config.use_cache else (self.head(x),)

    class Library(Kept, Decoder):
        pass

    model = nn.Sequential(Library())
    model[0].config.use_cache = True
    small = duplicate(model)
    assert len(small(torch.randn(2, 4))) == 1
    assert len(model(torch.randn(2, 4))) == 2
    assert len(duplicate(Decoder())(torch.randn(2, 4))) == 2  # a network of one's own means by the word what it likes


@dataclass(frozen=True)
class Settings:
    use_cache: bool = True


class Hub(Mlp):
    """Kept as hubs do, with a configuration of its own kind."""

    def __init__(self):
        super().__init__()
        self.config = Settings()

    def save_pretrained(self, folder):
        self.kept = folder


def test_a_configuration_that_cannot_change_is_left():
    assert duplicate(Hub()).config == Settings()
    Task(seeded(Hub), calibration=[torch.randn(2, 12)])


def test_a_copy_can_be_pickled_and_copied_whole(tmp_path):
    small = duplicate(seeded(Hub))
    torch.save(small, tmp_path / "whole.pt")
    for again in (pickle.loads(pickle.dumps(small)), torch.load(tmp_path / "whole.pt", weights_only=False), copy.deepcopy(small)):
        assert torch.equal(again.fc1.weight, small.fc1.weight)
        again.save_pretrained("plain")
        assert again.kept == "plain"
        code_(again.fc2, "weight", Affine(8).encode(again.fc2.weight))
        with pytest.raises(ArtifactError, match="from_pretrained could not read"):
            again.save_pretrained("coded")
    assert not hasattr(small, "kept")


def test_a_network_with_coded_layers_does_not_write_a_folder_that_cannot_be_read():
    class Pretrained(Mlp):
        def save_pretrained(self, folder):
            self.kept = folder

    model = seeded(Pretrained)
    small = duplicate(model)
    small.save_pretrained("plain")
    assert small.kept == "plain"
    code_(small.fc2, "weight", Affine(8).encode(small.fc2.weight))
    again = duplicate(small)
    for coded in (small, again):
        with pytest.raises(ArtifactError, match=r"'fc2' is CodedLinear: from_pretrained could not read .* enxuto\.save"):
            coded.save_pretrained("coded")
    assert small.kept == "plain"
    to_float(again).save_pretrained("floats")
    model.save_pretrained("original")
    assert model.kept == "original"


def test_hooks_of_both_directions_go_on_with_a_replacement():
    model, seen = nn.Sequential(nn.Linear(2, 2)), []
    model[0].register_full_backward_hook(lambda module, into, out: seen.append("backward"))
    model[0].register_forward_hook(lambda module, given, output: seen.append("forward"))
    replace_(model, "0", nn.Linear(2, 2))
    model(torch.randn(3, 2, requires_grad=True)).sum().backward()
    assert seen == ["forward", "backward"]
