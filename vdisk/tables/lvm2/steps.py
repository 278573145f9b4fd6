"""Changes to physical volumes as values: ordered writes with barriers between them.

Whoever holds the drives carries steps out in order.  Writes between two barriers may reach the
drive in any order; nothing after a `Barrier` may reach it before all that came before is durable
(fdatasync).  A crash may leave any of the writes since the last barrier done, in part or not.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Put:
    """Write `data` at byte `offset` of the physical volume whose UUID is `pv`."""

    pv: str
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Zero:
    """Make `length` bytes from byte `offset` of the physical volume `pv` read as zeros."""

    pv: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Barrier:
    """Everything before is durable before anything after begins."""


Step = Put | Zero | Barrier
