"""A lock that many share and one at times has alone: data I/O, and plans that give places up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition, Lock


class Gate:
    """`with gate:` is shared; `with gate.alone():` waits until nobody else is inside.

    Whoever waits to be alone goes before those who come later, so it is not kept waiting for ever.
    Sharing must not be nested: the inner one would wait for whoever waits for the outer one.
    """

    def __init__(self) -> None:
        self._changed = Condition(Lock())
        self._inside = 0
        self._closed = False

    def __enter__(self) -> None:
        with self._changed:
            while self._closed:
                self._changed.wait()
            self._inside += 1

    def __exit__(self, *exception: object) -> None:
        with self._changed:
            self._inside -= 1
            if self._closed:
                self._changed.notify_all()

    def try_enter(self) -> bool:
        """Go in if that needs no waiting; whoever is told True must call `leave`."""
        if not self._changed.acquire(blocking=False):
            return False
        try:
            self._inside += not self._closed
            return not self._closed
        finally:
            self._changed.release()

    def leave(self) -> None:
        """The end of what `try_enter` began."""
        self.__exit__()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else is inside, until the end."""
        with self._changed:
            while self._closed:
                self._changed.wait()
            self._closed = True
            while self._inside:
                self._changed.wait()
        try:
            yield
        finally:
            with self._changed:
                self._closed = False
                self._changed.notify_all()
