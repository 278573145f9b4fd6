"""What can go wrong with a disk.

One small, stable set of kinds.  Each error says what happened, to which file, and what to do;
`str(error)` is the one line a person reads.  No errno is chosen here: `mount/errors.py` maps kinds
to errno values, and `vdisk/cli` maps them to exit statuses.
"""

from __future__ import annotations

import os


class DiskError(Exception):
    """The base of everything vdisk raises on purpose.

    `message` says what happened, `path` names the host file (or address) it happened to, `hint`
    says what to do about it.  All three are joined into one line by `str()`.
    """

    def __init__(
        self,
        message: str,
        *,
        path: str | os.PathLike[str] | None = None,
        hint: str | None = None,
    ) -> None:
        self.message = message
        self.path = None if path is None else os.fspath(path)
        self.hint = hint
        super().__init__(message)

    def __str__(self) -> str:
        text = self.message if self.path is None else f"{self.path}: {self.message}"
        if self.hint is not None:
            text = f"{text} ({self.hint})"
        return printable(text)


def printable(text: str) -> str:
    """`text` as one line: what an image or a file name put in it cannot move the cursor."""
    return "".join(
        char if char.isprintable() else repr(char)[1:-1] for char in text
    )


class InvalidFormat(DiskError):
    """The file is not what it was taken for: a magic, a size or a version does not fit."""


class Corrupt(DiskError):
    """The file is of the right kind, and is damaged: a checksum, a pointer or a count is wrong."""


class Unsupported(DiskError):
    """The file is sound, and needs something that vdisk does not do."""


class InvalidArgument(DiskError):
    """The caller asked for something that makes no sense: an absurd size, a bad geometry."""


class OutOfRange(DiskError):
    """The range does not lie inside the disk."""


class ReadOnly(DiskError):
    """A change was asked of a disk that was opened for reading only."""


class Busy(DiskError):
    """Somebody else holds the disk: a lock, an open handle, a mount."""


class NotFound(DiskError):
    """No file, disk, partition or mount of that name."""


class Exists(DiskError):
    """The name is taken."""


class NoSpace(DiskError):
    """A drive, or a table on it, has no room for what was asked."""


class NotPermitted(DiskError):
    """This kind of thing cannot be done to this kind of object, whoever asks."""


class HostError(DiskError):
    """The operating system refused an operation on the host file.

    `errno` is the system's own number, kept so that a full host (ENOSPC) reaches the guest as
    what it is.
    """

    def __init__(
        self,
        message: str,
        *,
        errno: int,
        path: str | os.PathLike[str] | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, path=path, hint=hint)
        self.errno = errno

    @classmethod
    def of(
        cls,
        error: OSError,
        operation: str,
        path: str | os.PathLike[str],
        *,
        hint: str | None = None,
    ) -> HostError:
        """The `HostError` for `error`, met while doing `operation` ("open", "read" …) on `path`."""
        number = error.errno or 0
        reason = os.strerror(number) if number else str(error)
        return cls(f"cannot {operation}: {reason}", errno=number, path=path, hint=hint)
