"""From a command to the end of the process: exit statuses and the one line of an error.

====  ===========================================================================
0     done
1     it could not be done; one line on standard error says what, where and why
2     the command line makes no sense
130   interrupted from the keyboard
141   nobody reads standard output any more
====  ===========================================================================

`compare` ends with 1 where two disks differ and 2 where that could not be told; `check` with 3
where leaks are left and 4 where a corruption is.  What SIGTERM or SIGHUP ends is 128 + its number.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import NoReturn

import click

from vdisk.cli.group import BROKEN_PIPE_STATUS
from vdisk.errors import DiskError, HostError, printable

INTERRUPTED_STATUS = 130


def run_command(command: click.Command, name: str) -> NoReturn:
    """Run `command` on the process's arguments and end the process with its status."""
    run(lambda: command.main(prog_name=name, standalone_mode=False), name)


def run(work: Callable[[], object], name: str) -> NoReturn:
    """Do `work` and end the process with the status it returns, or with that of its error."""
    _open_standard_files()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # A file's name need not be text in this locale.
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    sys.exit(_flushed(_status(work, name), name))


def _open_standard_files() -> None:
    """Where a caller closed one of descriptors 0 to 2, no image may be opened as that number."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(fd)
    if sys.stderr is None:  # Who writes there means no harm by it.
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def _status(work: Callable[[], object], name: str) -> int:
    try:
        status = work()
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        say(name, _one_line(error, name))
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED_STATUS
    except BrokenPipeError:
        return BROKEN_PIPE_STATUS
    except (DiskError, OSError) as error:
        say(name, str(error if isinstance(error, DiskError) else _told(error)))
        return 1
    return status if isinstance(status, int) else 0


def _one_line(error: click.ClickException, name: str) -> str:
    """What click would print in several lines."""
    if not isinstance(error, click.UsageError):
        return error.format_message()
    where = name if error.ctx is None else error.ctx.command_path
    return f"{error.format_message().rstrip('.')} (see {where} --help)"


def say(name: str, text: str) -> None:
    """One line on standard error."""
    click.echo(f"{name}: {printable(text)}", err=True)


def _told(error: OSError) -> DiskError:
    """An error that nobody expected, with the file in question where the system names it."""
    if error.filename is None:
        return DiskError(error.strerror or str(error))
    return HostError.of(error, "use", os.fsdecode(error.filename))


def _flushed(status: int, name: str) -> int:
    """Bring out what standard output still holds; `status`, or that of the failure to."""
    if sys.stdout is None:
        return status
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        status = BROKEN_PIPE_STATUS
    except OSError as error:
        say(name, str(HostError.of(error, "write", "standard output")))
        status = status or 1
    else:
        return status
    # The interpreter would try again, fail again and say so.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return status
