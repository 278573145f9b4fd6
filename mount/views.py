"""Views of a disk, and who of them may be cached by the kernel.

A *view* is a range of a disk under an inode of its own: the whole disk, a partition, a track, a
sector.  The kernel keeps a page cache for each inode, so two views of the same bytes could differ.
The rule that keeps them equal:

    Of the views of one disk that are open through the page cache, no two overlap.

The first of overlapping views to be opened is cached; one that is opened while an overlapping one
is cached is opened without a cache (direct I/O) and stays so until it is closed.  So only a write
through a *direct* view can make a cached page stale, and `overlapping_cached` says whose.  A view
that was closed may leave pages behind; `forget_retained` marks those that a write made stale, and
the next open drops them.

A whole disk that is the bytes of a host file may be read by *passthrough*: the kernel goes to that
file itself, whose pages are the truth for every view.  It then counts as the cached one.  Only
who opens it for reading gets that.  The server never sees a passthrough write, and the kernel does
not know where the disk ends: the host file would grow.  A writer that comes while the disk is read
by passthrough is opened direct, and only what it maps into memory is the host file's.  What is
stored there is not seen by us, even after the close; so from then on (`bypassed`) no view of this
disk is cached any more, and its table is read again at each look.

A volume of a drive that lies on the disk is in several ranges of it.  It is always opened direct,
so that it counts only as a writer, of each of these ranges.

This is also why nothing can deadlock.  Telling the kernel to drop a page waits while the page is
locked, and a page of a cached view is locked while the kernel waits for our answer to a request on
that view.  Requests on cached views never drop pages of anything, so they are always answered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from vdisk.disk import Disk, Slice
from vdisk.host import HostFile
from vdisk.volume import VolumeDisk


@dataclass(frozen=True, slots=True)
class Backing:
    """A host file that the kernel can reach by itself: its number there, and how to end that.

    Number 0: the kernel cannot.
    """

    number: int = 0
    close: Callable[[], None] = lambda: None


@dataclass(slots=True, eq=False)
class View:
    """One range of a disk, under one inode number.

    `length` is None for the whole disk, whose size can change.  A request is tried in line with
    `host`, at `base` + its offset: the disk's window shifted to the view, and the disk itself where
    it has none.  Handle counts are of open file handles.
    """

    inode: int
    disk: Disk
    start: int
    length: int | None
    cacheable: bool = True
    handles: int = 0
    cached: bool = False  # How it is open now; meaningful while handles > 0.
    passthrough: bool = False  # Likewise.
    retained: bool = False  # The kernel may hold pages of it, and they are right.
    host: HostFile | Disk = field(init=False)
    base: int = field(init=False)

    def __post_init__(self) -> None:
        host, base = self.disk.window() or (self.disk, 0)
        self.host, self.base = host, base + self.start

    @property
    def size(self) -> int:
        """Bytes in the view."""
        return self.disk.size if self.length is None else self.length

    def try_read_into(self, offset: int, buffer: memoryview) -> bool:
        """Fill `buffer` from `offset` of the view if that needs no waiting; whether it was done."""
        return self.host.try_read_into(self.base + offset, buffer)

    def try_write(self, offset: int, data: bytes | memoryview) -> bool:
        """Write `data` at `offset` of the view if that needs no waiting; whether all was done."""
        return self.host.try_write(self.base + offset, data)

    def ranges(self, offset: int, length: int) -> Iterable[tuple[int, int]]:
        """The bytes of the whole disk, as (start, end), that a range of the view is."""
        return ((self.start + offset, self.start + offset + length),)

    @property
    def as_disk(self) -> Slice:
        """The view as a disk of its own."""
        return Slice(self.disk, self.start, self.size, address=self.disk.address)

    def overlaps(self, start: int, end: int) -> bool:
        """Whether the view has a byte in [start, end) of the disk."""
        return self.start < end and (self.length is None or start < self.start + self.length)

    def overlaps_view(self, other: View) -> bool:
        """Whether the two views share a byte."""
        if other.length is None:
            return self.length is None or self.length > 0
        return self.overlaps(other.start, other.start + other.length)


@dataclass(slots=True, eq=False)
class VolumeView(View):
    """A volume of a drive that lies on the disk, anywhere on it.  It is never cacheable."""

    def ranges(self, offset: int, length: int) -> Iterable[tuple[int, int]]:
        disk = self.disk
        assert isinstance(disk, VolumeDisk)
        for place, at, count in disk.image.runs(offset, length):
            if place is not None:
                yield place.start + at, place.start + at + count


@dataclass(slots=True)
class ViewSet:
    """The views of one disk that are open, or have pages in the kernel's cache."""

    whole: View
    known: dict[int, View] = field(default_factory=dict)
    bypassed: bool = False  # The disk may be in somebody's memory, by passthrough, for writing.

    def opened(
        self, view: View, *, writable: bool = True, backed: bool = False
    ) -> tuple[bool, bool]:
        """Count a handle of `view`: (direct, keep_cache) for the kernel's open.

        `backed`: it can be opened by passthrough, and `view.passthrough` says whether it is.
        """
        if view.handles == 0:
            self._choose(view, writable=writable, backed=backed)
        if view.passthrough and writable:
            self.bypassed = True
            self.forget_retained()
        view.handles += 1
        if view.cacheable or view.handles == 1:
            self.known[view.inode] = view
        keep = view.cached and view.retained
        view.retained = view.cached
        return not view.cached and not (view.passthrough and not writable), keep

    def _choose(self, view: View, *, writable: bool, backed: bool) -> None:
        """How the first handle of `view`, and with it every further one, is opened."""
        alone = view.cacheable and not any(
            other is not view
            and other.handles
            and (other.cached or other.passthrough)
            and other.overlaps_view(view)
            for other in self.known.values()
        )
        view.passthrough = backed and (self.bypassed or (alone and not writable))
        view.cached = alone and not self.bypassed and not view.passthrough

    def closed(self, view: View) -> None:
        """A handle of `view` is gone."""
        view.handles -= 1
        if view.handles == 0 and not view.retained:
            self.known.pop(view.inode, None)

    @property
    def handles(self) -> int:
        """Open handles on the disk, by whatever view."""
        return sum(view.handles for view in self.known.values())

    def overlapping_cached(self, writer: View, start: int, end: int) -> list[View]:
        """Other open views whose cached pages a write to [start, end) of the disk makes stale.

        Closed ones with pages left are marked on the way, so that their next open drops them.
        """
        if len(self.known) == 1 and writer.inode in self.known:
            return []
        stale = []
        for view in list(self.known.values()):
            if view is writer or not view.retained or not view.overlaps(start, end):
                continue
            if view.handles:
                stale.append(view)
            else:
                view.retained = False
                del self.known[view.inode]
        return stale

    def forget_retained(self) -> None:
        """The disk changed its size: whatever closed views left in the cache is stale."""
        for view in list(self.known.values()):
            if not view.handles:
                view.retained = False
                del self.known[view.inode]
