"""How far a long job is: the library says it, whoever listens shows it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from operator import length_hint
from typing import TypeVar

Listener = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is in all (0 = not known)."""

Item = TypeVar("Item")
_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Within the block, `listener` hears of everything that takes long."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def interrupting(check: Callable[[], None]) -> Iterator[None]:
    """Within the block, `check` is called before whoever listens hears of anything: what it raises ends the work.

    However the block ends, by an error or Ctrl-C too, whoever listens hears that nothing of it is under way any more.
    """
    heard = _listener.get()
    under_way: dict[str, None] = {}

    def both(what: str, done: int, total: int) -> None:
        check()
        under_way[what] = None
        if heard is not None:
            heard(what, done, total)

    try:
        with listening(both):
            yield
    finally:
        if heard is not None:
            for what in under_way:
                heard(what, 1, 1)


@contextmanager
def unheard(logger: str | None = None) -> Iterator[None]:
    """Within the block, a logger and those below it (the root without a name) warn of nothing: what they would say is known."""
    named = logging.getLogger(logger)
    level = named.level
    named.setLevel(logging.ERROR)
    try:
        yield
    finally:
        named.setLevel(level)


def say(what: str, done: int = 0, total: int = 0) -> None:
    """Tells the listener, if there is one, how far `what` is."""
    listener = _listener.get()
    if listener is not None:
        listener(what, done, total)


def counted(items: Iterable[Item], what: str | Callable[[], str], total: int = 0) -> Iterator[Item]:
    """The items, with a word to the listener before each; how many there are in all they may say themselves.

    What is being done may be told anew each time: it goes on under that name.
    """
    done, total = 0, total or length_hint(items)
    name = what if isinstance(what, str) else what()
    for item in items:
        name = what if isinstance(what, str) else what()
        say(name, done, total)
        yield item
        done += 1
    say(name, max(total, done), max(total, done))
