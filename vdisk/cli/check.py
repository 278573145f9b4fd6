"""`vdisk check`: what is wrong with an image's structure, and its repair."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from vdisk.cli.console import print_json
from vdisk.cli.params import address_argument, examples, image_options, json_option
from vdisk.errors import NotPermitted, printable
from vdisk.formats.base import Problem, ProblemKind, problem_limit
from vdisk.image_disk import ImageDisk
from vdisk.open import OpenOptions, open_image, parse_address

WASTE_STATUS = 3
CORRUPT_STATUS = 4


@click.command(
    epilog=examples(
        "vdisk check disk.vdi",
        "vdisk check --repair disk.vdi",
        "vdisk check --json disk.vdi | jq -r '.problems[].message'",
    )
)
@address_argument
@click.option("--repair", is_flag=True, help="Repair what can be repaired without losing data.")
@json_option
@image_options()
def check(address: str, repair: bool, as_json: bool, options: OpenOptions) -> int:
    """Check the structure of the image ADDRESS: its tables and counts, not what its guest wrote.

    Problems are of three kinds. A leak is space that nothing points to; what is unclean was left by
    a crash, and sets itself right with the next write; neither puts data in danger. A corruption
    does. The exit status is 0 where nothing is wrong (any more), 3 where leaks or unclean places
    are left, 4 where a corruption is, and 1 where it could not be checked. The images beneath an
    overlay are not checked with it.
    """
    parsed = parse_address(address)
    if parsed.inside:
        raise NotPermitted(
            "is a part of a disk", path=address, hint=f"check the image: vdisk check {parsed.path}"
        )
    with open_image(Path(parsed.path), writable=repair, options=options) as disk:
        repaired = list(disk.repair()) if repair else []
        left = list(problem_limit(disk.image.check()))
    if as_json:
        print_json(_as_json(disk, repaired, left))
    else:
        for line in _lines(disk, repaired, left):
            click.echo(printable(line))
    return status_of(left)


def status_of(left: Iterable[Problem]) -> int:
    """The exit status for the problems that are left."""
    kinds = {problem.kind for problem in left}
    if ProblemKind.CORRUPTION in kinds:
        return CORRUPT_STATUS
    return WASTE_STATUS if kinds else 0


def _as_json(disk: ImageDisk, repaired: list[Problem], left: list[Problem]) -> dict[str, Any]:
    return {
        "address": disk.address,
        "format": disk.image.name,
        "repaired": [_row(problem) for problem in repaired],
        "problems": [_row(problem) for problem in left],
    }


def _row(problem: Problem) -> dict[str, Any]:
    return {
        "kind": str(problem.kind),
        "message": problem.message,
        "repairable": problem.repair is not None,
    }


def _lines(disk: ImageDisk, repaired: list[Problem], left: list[Problem]) -> Iterable[str]:
    for problem in repaired:
        yield f"{disk.address}: repaired: {problem.message}"
    for problem in left:
        yield f"{disk.address}: {problem.kind}: {problem.message}"
    if any(problem.repair is not None for problem in left):
        yield f"{disk.address}: to repair what can be: vdisk check --repair {disk.address}"
    elif not left:
        yield f"{disk.address}: no problems found"
