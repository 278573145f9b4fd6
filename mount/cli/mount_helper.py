"""`mount.vdisk`: what mount(8) runs for `mount -t vdisk SOURCE DIRECTORY` and for lines in fstab.

The command line and the exit statuses are those that mount(8) has for external helpers:
`mount.vdisk SOURCE DIRECTORY [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]`.
"""

from __future__ import annotations

import getopt
import logging
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from mount.options import parse_options
from vdisk.cli.run import run, say
from vdisk.errors import DiskError, InvalidArgument, NotPermitted, printable

NAME = "mount.vdisk"
USAGE_STATUS = 1
FAILURE_STATUS = 32

_USAGE = f"usage: {NAME} SOURCE[:SOURCE...] DIRECTORY [-sfnv] [-o OPTIONS] [-t TYPE]"


@dataclass(slots=True)
class Call:
    """What mount(8) asks for."""

    source: str
    mountpoint: str
    options: list[str] = field(default_factory=list)
    sloppy: bool = False
    fake: bool = False
    verbose: bool = False


def main() -> NoReturn:
    """The entry point of the `mount.vdisk` command."""
    logging.basicConfig(format=f"{NAME}: %(message)s")
    run(lambda: status_of(sys.argv[1:]), NAME)


def status_of(arguments: list[str]) -> int:
    """Mount, or say on standard error why not; the exit status that mount(8) expects."""
    if {"-h", "--help"} & set(arguments):
        print(_USAGE)
        return 0
    try:
        mount(parse_call(arguments))
    except (InvalidArgument, NotPermitted) as error:
        say(NAME, str(error))
        return USAGE_STATUS
    except DiskError as error:
        say(NAME, str(error))
        return FAILURE_STATUS
    return 0


def parse_call(arguments: list[str]) -> Call:
    """What the command line says.  InvalidArgument for one that mount(8) would not write."""
    try:
        options, words = getopt.gnu_getopt(arguments, "sfnvrwN:o:t:")
    except getopt.GetoptError as error:
        raise InvalidArgument(f"{error.msg}; {_USAGE}") from error
    if len(words) != 2:
        raise InvalidArgument(_USAGE)
    call = Call(words[0], words[1])
    for name, value in options:
        match name:
            case "-s":
                call.sloppy = True
            case "-f":
                call.fake = True
            case "-v":
                call.verbose = True
            case "-o":
                call.options.append(value)
            case "-r":
                call.options.append("ro")
            case "-N":
                raise InvalidArgument(
                    "cannot mount into another namespace",
                    hint=f"nsenter --mount={value} vdisk mount …",
                )
    return call


def mount(call: Call) -> None:
    """Do what mount(8) asks for; with `fake`, everything but the mount.  Raises DiskError."""
    options = parse_options(call.options, sloppy=call.sloppy)
    # Imported here, so that a wrong option is told at once.
    from mount.cli.mount import check_mountpoint, check_source, start
    from mount.session import Request

    request = Request(sources(call.source), Path(call.mountpoint), options)
    check_mountpoint(request.mountpoint)
    if call.fake:
        for source in request.sources:
            check_source(source)
    else:
        start(request)
    if call.verbose:
        print(f"{NAME}: {printable(call.source)} mounted on {printable(call.mountpoint)}")


def sources(text: str) -> list[Path]:
    """One path; or several with colons between them, as `findmnt` shows a mount of several."""
    if ":" in text and not os.path.lexists(text):
        return [Path(part) for part in text.split(":") if part]
    return [Path(text)]

