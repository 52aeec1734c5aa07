import inspect
import pickle
import re

import pytest

from enxuto import errors

CLASSES = [value for _, value in inspect.getmembers(errors, inspect.isclass) if issubclass(value, errors.Error)]
CONCRETE = [kind for kind in CLASSES if kind is not errors.Error]


def drawn() -> dict[str, str]:
    """The tree at the top of the file: name -> built-in."""
    return dict(re.findall(r"── (\w+) +\((\w+)\)", str(errors.__doc__)))


def test_the_drawing_at_the_top_shows_the_tree_as_it_is():
    assert drawn() == {kind.__name__: kind.__bases__[1].__name__ for kind in CONCRETE}


@pytest.mark.parametrize("kind", CONCRETE)
def test_each_error_is_ours_and_the_built_in_that_it_refines(kind):
    own, built_in = kind.__bases__
    assert issubclass(own, errors.Error)
    assert built_in.__module__ == "builtins"
    with pytest.raises(built_in, match="why"):
        raise kind("why")
    with pytest.raises(errors.Error):
        raise kind("why")
    assert kind.__doc__


@pytest.mark.parametrize("kind", CLASSES)
def test_messages_survive_the_journey_between_processes(kind):
    error = pickle.loads(pickle.dumps(kind("group=5 does not divide 12")))
    assert type(error) is kind
    assert str(error) == "group=5 does not divide 12"


@pytest.mark.parametrize("kind", CLASSES)
def test_what_a_library_or_a_file_says_cannot_steer_the_terminal(kind):
    error = kind("\x1b[31mred\x1b[0m\tword \x1b]0;title\x07\x9b1mand\x08\r \x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\\nline")
    assert str(error) == "red\tword and link\nline"
