"""Plans that give guest clusters a place, or take it from them.

Where a pointer appears before its data may be durable, what must not happen is that other bytes are
read than were there before or were written.  A clean cluster reads as zeros; so

- where zeros were read before, the entry is written at once, and needs no barrier;
- where something else was (another's cluster, compressed data), or where the place is not clean,
  the data is durable before the entry;
- in an overlay the entry waits in memory until the guest flushes, and the data is durable first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vdisk.formats.qcow2.entry import COPIED, NOTHING, ZERO, Entry
from vdisk.plan import Barrier, Clear, Fill, Guest, Plan, Punch, Step

if TYPE_CHECKING:
    from vdisk.formats.qcow2.image import Qcow2

_CLUSTERS_AT_ONCE = 512
_UNLINKED_AT_ONCE = 16384


@dataclass(frozen=True, slots=True)
class _Target:
    """Clusters in a row, in the guest from `first` on and in the host from `place` on.

    `entries` is what they map to now.  `moved` says that the place is not the one they had, `fresh`
    that it reads as zeros, for good.
    """

    first: int
    entries: list[Entry]
    place: int
    moved: bool
    fresh: bool


def allocate(image: Qcow2, offset: int, length: int) -> Plan:
    """A place for guest bytes [offset, offset + length), and the request's bytes in it.

    With a length of 0 only what is beneath, up to the disk's end, gets one.
    """
    first = offset >> image.header.cluster_bits
    before = image.prepare(first)
    if before is not None:
        return before
    target = _target(image, first, offset + length)
    if target is None:
        return image.space.plan_more()
    size = image.header.cluster_size
    stop = min(offset + length, (first + len(target.entries)) * size)
    new = []
    steps: list[Step] = []
    for at, old in enumerate(target.entries):
        start = (first + at) * size
        low, high = max(offset, start), min(stop, start + size)
        place = target.place + at * size
        new.append(_placed(image, target, old, place, parts(image, low - start, high - start)))
        steps += _fills(image, target, old, new[-1], (start, low, high))
    if length:
        steps.append(
            Guest(offset, stop - offset, image.data, target.place + offset - first * size)
        )
    is_risky = not target.fresh or any(old.allocated or old.packed for old in target.entries)
    return _link(image, target, new, steps, is_risky, stop - offset)


def _target(image: Qcow2, first: int, end: int) -> _Target | None:
    """Where the clusters from `first` on go, as many as can go there; None for want of space."""
    header = image.header
    stop = max(-(-end >> header.cluster_bits), first + 1)
    stop = min(stop, (first // header.l2_entries + 1) * header.l2_entries)
    entries = [image.entry(index) for index in range(first, min(stop, first + _CLUSTERS_AT_ONCE))]
    if header.has_data_file:
        place = first * header.cluster_size
        fresh = image.is_hole(place, len(entries) * header.cluster_size)
        return _Target(first, entries, place, False, fresh)
    if entries[0].owned:
        assert entries[0].place is not None
        return _Target(first, entries[:1], entries[0].place, False, False)
    count = next((n for n, entry in enumerate(entries) if entry.owned), len(entries))
    found = image.space.take(count)
    if found is None:
        return None
    place = found[0] * header.cluster_size
    return _Target(first, entries[: found[1]], place, True, True)


def parts(image: Qcow2, low: int, high: int) -> int:
    """The parts of a cluster that bytes [low, high) of it touch, as bits; one where it is empty."""
    unit = image.header.unit
    first, last = low // unit, max(high - 1, low) // unit
    return (1 << last + 1) - (1 << first)


def _placed(image: Qcow2, target: _Target, old: Entry, place: int, touched: int) -> Entry:
    """The entry of a cluster that has its place, and the touched parts there."""
    allocated = old.allocated | touched
    if old.packed or (target.fresh and image.parent is None):
        allocated = image.entries.all_parts  # The rest is copied, or reads as zeros already.
    return Entry(place, True, allocated, old.zeros & ~allocated)


def _fills(
    image: Qcow2, target: _Target, old: Entry, new: Entry, where: tuple[int, int, int]
) -> Iterator[Step]:
    """Steps for what the request, at [low, high) in the cluster at `start`, does not fill itself.
    """
    start, low, high = where
    if target.fresh and image.parent is None and not (old.packed or old.allocated):
        return
    unit = image.header.unit
    wanted = new.allocated if target.moved else new.allocated & ~old.allocated
    assert new.place is not None
    distance = new.place - start
    for first, last in bit_runs(wanted):
        begin, end = start + first * unit, start + last * unit
        for left, right in ((begin, min(end, low)), (max(begin, high), end)):
            inside = min(right, image.size)
            if left < inside:
                yield Fill(left, inside - left, image.data, left + distance, target.fresh)
            left = max(left, inside)
            if left < right and not target.fresh:
                yield Clear(image.data, left + distance, right - left)


def bit_runs(bits: int) -> Iterator[tuple[int, int]]:
    """(first, end) of the runs of ones in `bits`, from the lowest on."""
    at = 0
    while bits >> at:
        at += (bits >> at & -(bits >> at)).bit_length() - 1
        ones = ~(bits >> at)
        end = at + (ones & -ones).bit_length() - 1
        yield at, end
        at = end


def _link(
    image: Qcow2, target: _Target, new: list[Entry], steps: list[Step], is_risky: bool, length: int
) -> Plan:
    """Make the clusters of `target` map to `new`, when `steps` are done."""
    index = target.first * image.header.entry_words
    words = [word for entry in new for word in image.entries.words(entry)]
    if image.header.has_data_file:
        end = target.place + len(new) * image.header.cluster_size
        steps.append(image.data_grow(end))
    if image.waits:
        image.l2.hold(index, len(words))
    else:
        if is_risky:
            steps.append(Barrier(image.written_hosts))
        steps.append(image.l2.put(index, words))

    def done() -> None:
        image.space.settle()
        image.l2.set_run(index, words, waiting=image.waits)
        if target.moved:
            for old in target.entries:
                give_up(image, old)

    # Between the two words of an entry that was compressed, it would be neither.
    torn = image.header.extended and any(old.packed for old in target.entries)
    return Plan(tuple(steps), done, length, exclusive=torn)


def give_up(image: Qcow2, entry: Entry, count: int = 1) -> None:
    """The clusters that `count` entries were one use of, each of the one behind that before it."""
    bits = image.header.cluster_bits
    if entry.packed is not None:
        first = entry.packed.offset >> bits
        last = entry.packed.offset + entry.packed.length - 1 >> bits
        image.space.give_up(first, last - first + 1)
    elif entry.place is not None and not image.header.has_data_file:
        image.space.give_up(entry.place >> bits, count)


# Zeros


def clear(image: Qcow2, offset: int, length: int) -> Plan:
    """Make guest bytes [offset, offset + length) read as zeros without a place, where they can."""
    header = image.header
    before = image.prepare(offset >> header.cluster_bits)
    if before is not None:
        return before
    unit, size = header.unit, header.cluster_size
    end = offset + length
    whole = end if end < image.size else -(-end // unit) * unit
    needs_flag = image.parent is not None and offset < image.parent.size
    if offset % unit or whole - offset < unit or (needs_flag and not header.has_zero_flag):
        stop = min(end, (offset // unit + 1) * unit)
        return _clear_part(image, offset, stop - offset)
    first = offset // size
    count = min((whole - offset) // size, header.l2_entries - first % header.l2_entries)
    if offset % size == 0 and count:
        return _unlink(image, first, min(count, _UNLINKED_AT_ONCE), end)
    stop = min(whole // unit * unit, (first + 1) * size)
    return _clear_subclusters(image, offset, stop, end)


def _clear_part(image: Qcow2, offset: int, length: int) -> Plan:
    """Zeros in place, or in a new one: for less than can be mapped to nothing."""
    first, inside = divmod(offset, image.header.cluster_size)
    old = image.entry(first)
    if old.owned and old.allocated >> inside // image.header.unit & 1:
        assert old.place is not None
        return Plan((Guest(offset, length, image.data, old.place + inside),), length=length)
    return allocate(image, offset, length)


def _unlink(image: Qcow2, first: int, count: int, end: int) -> Plan:
    """Whole clusters are mapped to nothing, or to zeros where a parent is beneath."""
    size = image.header.cluster_size
    nothing = NOTHING if image.parent is None else Entry(zeros=image.entries.all_parts)
    plan = _link_nothing(image, first, image.entries.words(nothing) * count)
    return replace(plan, length=min(end, (first + count) * size) - first * size)


def unlink_places(image: Qcow2, start: int, end: int) -> Plan | None:
    """Map guest clusters from `start` on, past the disk's end and of one L2 table, to nothing.

    A part of them in a plan; None where none of [start, end) has a place.
    """
    words = image.header.entry_words
    for first, page in image.l2.runs(start * words, end * words):
        for at in range(0, len(page), words):
            if page[at] & ~(ZERO | COPIED):
                index = (first + at) // words
                count = min(end - index, _UNLINKED_AT_ONCE)
                before = image.prepare(index)
                return before or _link_nothing(image, index, image.entries.words(NOTHING) * count)
    return None


def _link_nothing(image: Qcow2, first: int, words: tuple[int, ...]) -> Plan:
    """Give up what whole clusters from `first` on map to, and write `words` in its place.

    Nobody else uses the image meanwhile: what is under way has a place still.
    """
    size, each = image.header.cluster_size, image.header.entry_words
    gone = list(image.entry_runs(first, first + len(words) // each))
    places = [(entry.place, count * size) for count, entry in gone if entry.owned]
    steps: list[Step] = [*_punches(image, places), *_written(image, first, words)]

    def done() -> None:
        image.l2.set_run(first * each, words, waiting=image.waits)
        for count, entry in gone:
            give_up(image, entry, count)

    return Plan(tuple(steps), done, exclusive=True)


def _written(image: Qcow2, first: int, words: tuple[int, ...]) -> Iterator[Step]:
    """The step that writes the words of entries from `first` on, where they do not wait."""
    index = first * image.header.entry_words
    if image.waits:
        image.l2.hold(index, len(words))
    else:
        yield image.l2.put(index, words)


def _clear_subclusters(image: Qcow2, offset: int, stop: int, end: int) -> Plan:
    """Some subclusters, up to `stop`, of one cluster."""
    first, inside = divmod(offset, image.header.cluster_size)
    old = image.entry(first)
    length = min(stop, end) - offset
    if old.packed:
        return allocate(image, offset, length)
    touched = parts(image, inside, inside + stop - offset)
    allocated = old.allocated & ~touched
    zeros = old.zeros & ~touched if image.parent is None else old.zeros | touched
    goes = allocated == 0  # Nobody would ever give the cluster up otherwise.
    new = Entry(None if goes else old.place, old.owned and not goes, allocated, zeros)
    words = image.entries.words(new)
    steps: list[Step] = []
    if old.owned and old.place is not None:
        steps += _punches(image, [(old.place + inside, stop - offset)])
    steps += _written(image, first, words)

    def done() -> None:
        image.l2.set_run(first * image.header.entry_words, words, waiting=image.waits)
        if goes:
            give_up(image, old)

    return Plan(tuple(steps), done, length, exclusive=True)


def _punches(image: Qcow2, places: list[tuple[int | None, int]]) -> list[Step]:
    """Give the room of (place, length) back: it reads as zeros, which the guest asked for."""
    found: list[tuple[int, int]] = []
    for place, length in places:
        if place is None:
            continue
        if found and sum(found[-1]) == place:
            found[-1] = found[-1][0], found[-1][1] + length
        else:
            found.append((place, length))
    # What follows the end of a data file is not to become a part of it.
    end = image.data.size()
    return [
        Punch(image.data, place, min(length, end - place)) for place, length in found if place < end
    ]
