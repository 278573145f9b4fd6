"""A plan: what has to be done in the host, step by step, so that a format can allocate or free.

A format decides and moves nothing: it answers with a `Plan`, and `vdisk.image_disk` carries it
out.  A plan is a value, so a test can look at its steps, stop after any of them, or do them in any
order that the barriers leave open.

Rules for whoever makes one:

* Steps are carried out in order, but are durable in any order until a `Barrier`.  A power loss
  leaves all steps before the last barrier, and any part of those after it.
* A plan that fails midway is forgotten, and the next one may give the same place to something else.
  So a step that makes a change visible (a table entry) carries what was there `before`, which is
  put back; where not even that can be written, the image is not written to any more.
* `done` is called when every step has succeeded, and only then.  It changes the format's tables
  in memory, cannot fail, and is seen by other threads' `map` at any moment: one assignment an
  entry.
* A plan that fails leaves the format as it was.  What it wrote lies in space that nothing points
  to, and is not zeros any more; so space is `fresh` only at or past the end of the host file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from vdisk.extent import Host
from vdisk.host import HostFile


@dataclass(frozen=True, slots=True)
class Put:
    """Write `data`, the bytes of a table or header, at `host_offset`.

    With `sync` it is durable when the step is done, without waiting for what else is dirty: for
    marks and counts that must be there before what follows, where a barrier would have to write
    out the guest's data too.  `before`, of the same length, is what the host has there now: it is
    put back if this step or a later one of the plan fails.  None where nothing points there yet, or
    where it does no harm.
    """

    host: HostFile
    host_offset: int
    data: bytes
    sync: bool = False
    before: bytes | None = None


@dataclass(frozen=True, slots=True)
class Guest:
    """Put the request's own bytes for [guest_offset, guest_offset + length) at `host_offset`.

    For `zero` and `discard` they are zeros.
    """

    guest_offset: int
    length: int
    host: Host
    host_offset: int


@dataclass(frozen=True, slots=True)
class Fill:
    """Put what the guest reads there *now* at `host_offset`: the rest of a newly allocated cluster.

    From the parent, from compressed data, from a shared cluster; or zeros, which are not written
    where `fresh` says that the host bytes read as zeros already.
    """

    guest_offset: int
    length: int
    host: Host
    host_offset: int
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class Copy:
    """Copy `length` bytes inside `host`, from `from_offset` to `host_offset`: they do not overlap.

    For blocks that have to make room for a table, or that fill a gap.
    """

    host: HostFile
    from_offset: int
    host_offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Clear:
    """Make host bytes read as zeros, keeping their space."""

    host: Host
    host_offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Punch:
    """Make host bytes read as zeros and give their space back."""

    host: Host
    host_offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Grow:
    """Make the host file at least `size` bytes large; what is new reads as zeros."""

    host: HostFile
    size: int


@dataclass(frozen=True, slots=True)
class Truncate:
    """Make the host file exactly `size` bytes large."""

    host: HostFile
    size: int


@dataclass(frozen=True, slots=True)
class Barrier:
    """All steps before this one, and all writes that returned, are durable before any after it."""

    hosts: tuple[Host, ...]


Step = Put | Guest | Fill | Copy | Clear | Punch | Grow | Truncate | Barrier


def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps in order, and what makes them count in memory.

    `steps` is a tuple; an iterator, to be used once, only where a resize has very many.
    `length` is how many of the guest bytes asked about this plan answers for, from the first on;
    the disk asks again for the rest.  With 0 it only prepares: the disk carries it out and asks
    again for all.  It means nothing where no range was asked about.
    `exclusive` says that places are given up, or shared: no other I/O of the image is under way
    while such a plan is carried out.
    """

    steps: Iterable[Step] = ()
    done: Callable[[], None] = _nothing
    length: int = 0
    exclusive: bool = False


Plans = Callable[[], Plan | None]
"""A series of plans: asked for the next one when the one before it is done, None after the last.

After each of them the image is sound; where one fails, `check` tells what there is to repair.
"""
