"""The memory that requests are read into, and that writes keep while they wait."""

from __future__ import annotations

HELD_BYTES_MAX = 64 << 20
"""The most that writes which wait may hold in all, before they have to make do with less."""
COPIED_BYTES_MAX = 64 << 10
"""A write up to this size is copied out of the buffer; a larger one takes the buffer with it."""
_SPARES_MAX = 16


class Held:
    """The data of a write that waits.  `release` gives its memory back, once."""

    def __init__(self, buffers: Buffers, data: memoryview, buffer: bytearray | None) -> None:
        self.data = data
        self._buffers = buffers
        self._buffer = buffer
        self._count = len(data) if buffer is None else len(buffer)
        buffers.held_bytes += self._count

    def release(self) -> None:
        """The data is not used any more."""
        self.data.release()
        self._buffers.held_bytes -= self._count
        if self._buffer is not None:
            self._buffers.give_back(self._buffer)


class Buffers:
    """One buffer that requests are read into, others instead of those that writes took along."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.held_bytes = 0
        self._spares: list[bytearray] = []
        self.current = bytearray(size)

    @property
    def is_full(self) -> bool:
        """Whether writes that wait hold as much as they may."""
        return self.held_bytes >= HELD_BYTES_MAX

    def keep(self, data: memoryview) -> Held:
        """Keep `data`, which lies in the current buffer; another one may be current afterwards."""
        if len(data) <= COPIED_BYTES_MAX:
            return Held(self, memoryview(bytes(data)), None)
        taken, self.current = self.current, self._spare()
        return Held(self, data, taken)

    def give_back(self, buffer: bytearray) -> None:
        """A buffer that was taken along is free again."""
        if len(self._spares) < _SPARES_MAX:
            self._spares.append(buffer)

    def _spare(self) -> bytearray:
        return self._spares.pop() if self._spares else bytearray(self.size)
