"""Every error enxuto raises on purpose, as one tree.

    Error
    ├── RangeError          (ValueError)    a number outside what makes sense
    ├── ShapeError          (ValueError)    sizes that do not fit together
    ├── LayerError          (LookupError)   a pattern that matches no layer, a layer that cannot be treated
    ├── NothingChangedError (RuntimeError)  a step that would have left the model as it was
    ├── TaskError           (ValueError)    what the user brought is missing, broken or not finite
    │   └── GradientError   (RuntimeError)  a forward that runs, but that no gradients go through
    ├── TargetError         (ValueError)    a goal that cannot be reached or does not make sense
    ├── LimitError          (ValueError)    a memory limit that nothing can keep
    ├── RecipeError         (ValueError)    a recipe file that names no known step or argument
    ├── ArtifactError       (ValueError)    a .nxt file that is truncated, altered, foreign or for another network
    ├── DataError           (ValueError)    a folder that holds no data set
    ├── ExportError         (RuntimeError)  a model that a runtime does not take
    ├── MissingPackageError (ImportError)   a package that an extra would have installed
    ├── ProcessError        (RuntimeError)  another process of the same job is gone
    └── OutputError         (OSError)       a file or folder that cannot be written

Messages have three clauses: what was asked (with its value), where, and what would work.
"""

from __future__ import annotations

import re

_ESCAPES = re.compile(r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def without_escapes(text: str) -> str:
    """Text without what steers a terminal: colours, titles, cursors, bells. Tabs and line ends stay.

    >>> without_escapes("\\x1b[31mno\\x1b[0m such \\x1b]0;title\\x07layer")
    'no such layer'
    """
    return _ESCAPES.sub("", text)


class Error(Exception):
    """The root: `except enxuto.Error` catches everything enxuto raises on purpose.

    Its words are plain: what a library or a file put into them cannot steer a terminal.
    """

    def __init__(self, *words: object) -> None:
        super().__init__(*(without_escapes(word) if isinstance(word, str) else word for word in words))


class RangeError(Error, ValueError):
    """A number is outside the range in which it makes sense."""


class ShapeError(Error, ValueError):
    """Sizes do not fit together."""


class LayerError(Error, LookupError):
    """No layer matches, or a layer cannot be treated as asked."""


class NothingChangedError(Error, RuntimeError):
    """A step would have left the model exactly as it was."""


class TaskError(Error, ValueError):
    """What the user brought (model, batches, functions) is missing, broken or not finite."""


class GradientError(TaskError, RuntimeError):
    """A forward runs, but torch computes no gradients through it."""


class TargetError(Error, ValueError):
    """A goal cannot be reached or does not make sense."""


class LimitError(Error, ValueError):
    """Not even the least that a step needs fits a memory limit."""


class RecipeError(Error, ValueError):
    """A recipe names an unknown step or argument."""


class ArtifactError(Error, ValueError):
    """A .nxt file is truncated, altered, foreign, or belongs to another network."""


class DataError(Error, ValueError):
    """A folder does not hold the data set it should."""


class ExportError(Error, RuntimeError):
    """A runtime does not take the model."""


class MissingPackageError(Error, ImportError):
    """A package is not installed that another extra of enxuto brings."""


class ProcessError(Error, RuntimeError):
    """Another process that shares the job is gone, or does not answer."""


class OutputError(Error, OSError):
    """A file or folder cannot be written."""
