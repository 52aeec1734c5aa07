import pytest
from torch import nn

from enxuto.errors import LayerError
from enxuto.select import matches, select


@pytest.mark.parametrize(
    ("path", "layers", "wanted"),
    [
        ("fc1", "*", True),
        ("blocks.0.fc1", "*", True),
        ("blocks.0.fc1", "blocks", True),
        ("blocks.0.fc1", "blocks.0", True),
        ("blocks.0.fc1", "blocks.*", True),
        ("blocks.0.fc1", "*.fc1", True),
        ("blocks.0.fc1", "fc1", False),
        ("blocks.10.fc1", "blocks.1", False),
        ("blocks2.fc1", "blocks", False),
        ("fc1", "fc?", True),
        ("fc12", "fc?", False),
        ("fc1", "fc[13]", True),
        ("fc1", ["fc2", "fc1"], True),
        ("fc1", ["*", "!fc1"], False),
        ("fc1", ["!fc1", "*"], True),
        ("head.fc", ["*", "!head"], False),
        ("FC1", "fc1", False),
        ("fc1", [], False),
        ("fc1", "!fc1", False),
        ("", "*", True),
    ],
)
def test_patterns_match_as_in_a_shell_and_name_what_is_below(path, layers, wanted):
    assert matches(path, layers) is wanted


def linear(module):
    return isinstance(module, nn.Linear)


def model():
    shared = nn.Linear(2, 2)
    return nn.ModuleDict({"a": shared, "b": nn.Sequential(nn.ReLU(), nn.Linear(2, 2)), "again": shared})


def test_layers_come_in_the_order_of_the_model_and_each_once():
    net = model()
    assert [path for path, _ in select(net, "*", linear)] == ["a", "b.1"]
    assert [path for path, _ in select(net, ["b", "a"], linear)] == ["a", "b.1"]
    assert [path for path, _ in select(net, ["*", "!a"], linear)] == ["b.1"]


def test_a_model_that_is_one_layer_is_selected_under_its_empty_path():
    layer = nn.Linear(2, 2)
    assert select(layer, "*", linear) == [("", layer)]


@pytest.mark.parametrize("layers", ["c", ["a", "c*"], "b.9", "!c"])
def test_a_pattern_without_a_layer_is_refused_with_the_layers_there_are(layers):
    with pytest.raises(LayerError, match=r"matches nothing in this model; its layers are 'a', 'b'"):
        select(model(), layers, linear)


@pytest.mark.parametrize("layers", ["b.0", [], ["a", "!a"]])
def test_a_selection_without_a_treatable_layer_is_refused(layers):
    with pytest.raises(LayerError, match=r"selects no layer this step can treat; the model is made of Linear, ReLU"):
        select(model(), layers, linear)
