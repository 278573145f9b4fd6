"""Carrying out what is to be written to the physical volumes of a drive."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from vdisk.host import HostFile
from vdisk.tables.lvm2 import Barrier, Put, Step
from vdisk.volume import Place


def carry_out(steps: Iterable[Step], places: Mapping[str, Place]) -> None:
    """Do `steps` in order, on the `places` by the UUID of the physical volume.  HostError.

    What is put into a host file is made durable by itself: a barrier that flushed the file would
    also wait for all that guests wrote to their volumes.
    """
    loose: dict[str, Place] = {}  # Where something is written that may not be durable yet.
    for step in steps:
        if isinstance(step, Barrier):
            for place in loose.values():
                place.host.flush()
            loose.clear()
            continue
        place = places[step.pv]
        if isinstance(step, Put):
            place.put(step.offset, step.data)
        else:
            place.host.zero(place.base + step.offset, step.length)
        if not isinstance(step, Put) or not isinstance(place.host, HostFile):
            loose[step.pv] = place
