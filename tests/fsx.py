"""Random operations on one file, each checked against a plain byte array, as fsx does.

Not a test by itself: `Exerciser` does one operation with each `step`.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable
from pathlib import Path
from random import Random

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_PUNCH, _ZERO, _KEEP = 2, 16, 1
_PART = 60_000


class Exerciser:
    """An open disk and what it must hold, `model`."""

    def __init__(self, path: Path, random: Random, size_max: int = 2 << 20) -> None:
        self._path = path
        self._random = random
        self._size_max = size_max
        self._fd = os.open(path, os.O_RDWR)
        self.model = bytearray(os.pread(self._fd, size_max, 0))
        self._operations: list[tuple[Callable[[], None], int]] = [
            (self._write, 30), (self._read, 30), (self._store, 10), (self._look, 10),
            (self._punch, 8), (self._zero, 8), (self._copy, 8), (self._truncate, 2),
            (self._sync, 2), (self._reopen, 2),
        ]  # fmt: skip

    def step(self) -> None:
        """One operation.  AssertionError where the disk is not what it must be."""
        operations, weights = zip(*self._operations, strict=True)
        self._random.choices(operations, weights)[0]()

    def close(self) -> None:
        """Look at all of it, and close it."""
        assert os.pread(self._fd, self._size_max, 0) == self.model
        os.close(self._fd)

    def _range(self) -> tuple[int, int]:
        offset = self._random.randrange(len(self.model))
        return offset, min(self._random.randint(1, _PART), len(self.model) - offset)

    def _bytes(self, length: int) -> bytes:
        return self._random.randbytes(length)

    def _write(self) -> None:
        offset, length = self._range()
        data = self._bytes(length)
        assert os.pwrite(self._fd, data, offset) == length
        self.model[offset : offset + length] = data

    def _read(self) -> None:
        offset, length = self._range()
        assert os.pread(self._fd, length, offset) == self.model[offset : offset + length]

    def _store(self) -> None:
        offset, length = self._range()
        data = self._bytes(length)
        with mmap.mmap(self._fd, len(self.model)) as memory:
            memory[offset : offset + length] = data
        self.model[offset : offset + length] = data

    def _look(self) -> None:
        offset, length = self._range()
        with mmap.mmap(self._fd, len(self.model), prot=mmap.PROT_READ) as memory:
            assert memory[offset : offset + length] == self.model[offset : offset + length]

    def _fallocate(self, mode: int) -> None:
        offset, length = self._range()
        if _libc.fallocate(self._fd, mode, offset, length) != 0:
            raise OSError(ctypes.get_errno(), "fallocate")
        self.model[offset : offset + length] = bytes(length)

    def _punch(self) -> None:
        self._fallocate(_PUNCH | _KEEP)

    def _zero(self) -> None:
        self._fallocate(_ZERO)

    def _copy(self) -> None:
        offset, length = self._range()
        to = self._random.randrange(len(self.model) - length + 1)
        if abs(to - offset) < length:
            return
        done = os.copy_file_range(self._fd, self._fd, length, offset, to)
        assert 0 < done <= length
        self.model[to : to + done] = self.model[offset : offset + done]

    def _truncate(self) -> None:
        size = self._random.randint(1, self._size_max // 512) * 512
        os.ftruncate(self._fd, size)
        del self.model[size:]
        self.model += bytes(size - len(self.model))

    def _sync(self) -> None:
        os.fsync(self._fd)

    def _reopen(self) -> None:
        os.close(self._fd)
        self._fd = os.open(self._path, os.O_RDWR)
        assert os.fstat(self._fd).st_size == len(self.model)
