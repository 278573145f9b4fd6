"""The command: what is chosen, what is left out, and where the results go."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bench.chart import chart
from bench.contenders import VDISK, Contender, contenders, other_qsd, variants
from bench.interrupt import Interrupted, catch_signals
from bench.machine import describe_machine, versions
from bench.place import Place
from bench.report import as_json, table
from bench.rounds import Plan, Results, measure
from bench.variants import VARIANTS
from bench.workload import WORKLOADS, Workload

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "performance.md"
MARKS = ("<!-- figures begin -->", "<!-- figures end -->")
"""Between these lines of the document are the figures of the day."""

_MIB = 1 << 20


def _chosen(name: str, given: str | None, known: Sequence[str]) -> list[str]:
    """The names in a comma-separated option, all of them where it was not given."""
    names = list(known) if given is None else [part for part in given.split(",") if part]
    unknown = [each for each in names if each not in known]
    if unknown or not names:
        raise click.BadParameter(
            f"{', '.join(unknown) or 'nothing'}: choose from {', '.join(known)}", param_hint=name
        )
    return names


def _places(names: Sequence[str], quick: bool, folder: str) -> list[Place]:
    shared = Path("/dev/shm")
    size = 256 * _MIB
    known = {
        "tmpfs": Place("tmpfs", shared, size if quick else 1024 * _MIB),
        "disk": Place("disk", Path(folder), size if quick else 2048 * _MIB),
        "cold": Place("cold", Path(folder), size if quick else 2048 * _MIB, cold=True),
    }
    return [known[name] for name in names]


def _available(chosen: Sequence[Contender], left_out: dict[str, str]) -> list[Contender]:
    found = []
    for contender in chosen:
        reason = contender.missing()
        if reason is None:
            found.append(contender)
        else:
            left_out[contender.label] = reason
    return found


def _usable(places: Sequence[Place], left_out: dict[str, str]) -> list[Place]:
    found = []
    for place in places:
        reason = place.missing()
        if reason is None:
            found.append(place)
        else:
            left_out[f"place {place.name}"] = reason
    return found


def _workloads_at(place: Place, workloads: Sequence[Workload]) -> list[Workload]:
    # A write into an empty cache differs from one into a full one only in reads it may cause.
    return [each for each in workloads if not (place.cold and each.direction == "write")]


def _measure_all(plan: Plan, places: Sequence[Place]) -> list[Results]:
    plans = [
        Plan(_workloads_at(place, plan.workloads), plan.contenders, plan.rounds, plan.seconds)
        for place in places
    ]
    bar = Progress(
        BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"),
        console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty(),
    )
    with bar:
        task = bar.add_task("", total=sum(each.runs for each in plans), completed=-1)

        def progress(what: str) -> None:
            bar.update(task, advance=1, description=what)

        return [measure(each, place, progress) for each, place in zip(plans, places, strict=True)]


def _about(plan: Plan, left_out: dict[str, str], machine: dict[str, Any]) -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine,
        "versions": versions(plan.contenders),
        "settings": {"rounds": plan.rounds, "seconds": plan.seconds, "io_engine": "psync"},
        "left_out": left_out,
    }


def _conditions(about: dict[str, Any]) -> str:
    """One line that says when and on what."""
    machine, settings = about["machine"], about["settings"]
    rounds = "1 round" if settings["rounds"] == 1 else f"{settings['rounds']} rounds"
    return (
        f"{about['date']}; {machine['processors']} processors ({machine['processor']}), "
        f"{machine['memory_bytes'] / (1 << 30):.0f} GiB of memory, Linux {machine['kernel']}; "
        f"{rounds} of {settings['seconds']:g} s; load {machine['load_at_start']:g} at the start"
    )


def _summary(
    about: dict[str, Any], all_results: Sequence[Results], plan: Plan
) -> str:
    """What is printed, and what the document holds: conditions, tables, what is not in them."""
    found = about["versions"]
    parts = [
        f"{_conditions(about)}.",
        "Versions: " + "; ".join(f"{name}: {text}" for name, text in found.items()) + ".",
    ]
    parts += [table(results, plan.workloads, plan.contenders) for results in all_results]
    parts += [f"Left out: {name} ({reason})." for name, reason in about["left_out"].items()]
    parts += [f"Failed: {text}." for results in all_results for text in results.failures]
    return "\n\n".join(parts)


def _write(folder: Path, text: str, drawing: str | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "performance.json").write_text(text, encoding="utf-8")
    if drawing is not None:
        (folder / "performance.svg").write_text(drawing, encoding="utf-8")


def _record(summary: str) -> None:
    """Put the figures into the document, in the place of those that are there."""
    begin, end = MARKS
    text = DOCUMENT.read_text(encoding="utf-8")
    new, count = re.subn(
        f"{re.escape(begin)}.*{re.escape(end)}", lambda _: f"{begin}\n\n{summary}\n\n{end}", text,
        flags=re.DOTALL,
    )
    if count != 1:
        raise click.ClickException(f"{DOCUMENT} does not have the marks {begin} and {end} once")
    DOCUMENT.write_text(new, encoding="utf-8")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--quick", is_flag=True, help="One round of one second on 256 MiB: does it all run?")
@click.option("--rounds", type=click.IntRange(1, 100), help="Default 5.")
@click.option("--seconds", type=click.FloatRange(0.2, 600), help="For each run.  Default 3.")
@click.option("--servers", metavar="NAME,…",
              help="host, loop, vdisk, vdisk-kernel, vdisk-pyfuse3, qsd, nbdfuse.  Default: all of"
                   " these.  Also variants of the own server: " + ", ".join(VARIANTS) + ".")
@click.option("--places", metavar="NAME,…",
              help="tmpfs, disk, cold (on disk, not in memory; reads).  Default tmpfs,disk.")
@click.option("--workloads", metavar="NAME,…", help="Such as randread-4k-1.  Default all.")
@click.option("--disk-folder", default="/var/tmp", show_default=True,
              help="Where the image on disk goes.")
@click.option("--output", type=click.Path(path_type=Path, file_okay=False),
              default=ROOT / "build" / "bench",
              help="Folder for performance.json and performance.svg.  Default build/bench.")
@click.option("--record", is_flag=True, help="Put the figures into docs/, as those of the day.")
@click.option("--vdisk", "vdisk_command", metavar="COMMAND", help="Measure another vdisk.")
@click.option("--qsd", "qsd_command", metavar="COMMAND",
              help="Measure another, newer qemu-storage-daemon too: qsd-other, and with"
                   " two threads qsd-other-2.")
def main(
    *, quick: bool, rounds: int | None, seconds: float | None, servers: str | None,
    places: str | None, workloads: str | None, disk_folder: str, output: Path, record: bool,
    vdisk_command: str | None, qsd_command: str | None,
) -> None:
    """Measure with fio how fast one image is: as the host file itself, through vdisk, and through
    what else could carry it.

    Each run is short, and all contenders take turns, so that they meet the same machine.  Writes
    a table to standard output, and a JSON file and an SVG chart to --output.

    \b
    Examples:
      scripts/bench --quick
      scripts/bench --servers vdisk,qsd --workloads randread-4k-1,randwrite-4k-1 --rounds 9
    """
    if record:
        output = DOCUMENT.parent
    known = contenders(VDISK if vdisk_command is None else shlex.split(vdisk_command))
    if qsd_command is not None:
        known += other_qsd(shlex.split(qsd_command))
    by_name = {contender.name: contender for contender in [*known, *variants()]}
    chosen = _chosen("--servers", servers or ",".join(each.name for each in known), list(by_name))
    rows_by_name = {workload.name: workload for workload in WORKLOADS}
    left_out: dict[str, str] = {}
    plan = Plan(
        [rows_by_name[name] for name in _chosen("--workloads", workloads, list(rows_by_name))],
        _available([by_name[name] for name in chosen], left_out),
        rounds or (1 if quick else 5),
        seconds or (1.0 if quick else 3.0),
    )
    names = _chosen("--places", places or "tmpfs,disk", ["tmpfs", "disk", "cold"])
    where = _usable(_places(names, quick, disk_folder), left_out)
    for name, reason in left_out.items():
        click.echo(f"left out: {name}: {reason}", err=True)
    if not plan.contenders or not where:
        raise click.ClickException("nothing is left to measure")
    _run(plan, where, left_out, output, record)


def _run(
    plan: Plan, places: Sequence[Place], left_out: dict[str, str], output: Path, record: bool
) -> None:
    machine = describe_machine()
    all_results = _measure_all(plan, places)
    about = _about(plan, left_out, machine)
    summary = _summary(about, all_results, plan)
    drawing = chart(all_results, plan.workloads, plan.contenders, _conditions(about))
    _write(output, as_json(about, all_results, plan.workloads), drawing)
    if record:
        _record(summary)
    click.echo(summary)
    failures = [text for results in all_results for text in results.failures]
    for text in failures:
        click.echo(f"failed: {text}", err=True)
    if failures:
        raise SystemExit(1)


if __name__ == "__main__":
    catch_signals()
    try:
        main(prog_name="scripts/bench")
    except Interrupted as error:
        click.echo("interrupted; everything is put away", err=True)
        sys.exit(128 + error.number)
