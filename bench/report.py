"""From figures to medians and ratios: the table, and the JSON file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from bench.contenders import Contender
from bench.rounds import Results
from bench.workload import Workload

SUBJECT = "vdisk"
RATIOS = ("host", "loop", "qsd", "nbdfuse")
"""Contenders that the subject is set beside, in the table's order."""


@dataclass(frozen=True, slots=True)
class Row:
    """One workload: the median of each contender, and the subject's ratio to the others.

    A ratio is the median of the rounds' ratios, not the ratio of medians: what slows the machine
    down for a while slows down both sides of one round.
    """

    workload: Workload
    figures: dict[str, dict[int, float]]

    @property
    def medians(self) -> dict[str, float]:
        """By contender's name, in the workload's unit."""
        return {name: median(values.values()) for name, values in self.figures.items()}

    @property
    def ratios(self) -> dict[str, float]:
        """How many times as fast as each other contender the subject is."""
        mine = self.figures.get(SUBJECT, {})
        found = {}
        for name in RATIOS:
            theirs = self.figures.get(name, {})
            both = [mine[number] / theirs[number] for number in mine if theirs.get(number)]
            if both:
                found[name] = median(both)
        return found


def rows(results: Results, workloads: Sequence[Workload]) -> list[Row]:
    """A Row for each workload that was measured, in the order given."""
    found = []
    for workload in workloads:
        figures = {
            contender: values
            for (name, contender), values in results.figures.items()
            if name == workload.name
        }
        if figures:
            found.append(Row(workload, figures))
    return found


def table(results: Results, workloads: Sequence[Workload], contenders: Sequence[Contender]) -> str:
    """The table of one place in Markdown, its columns aligned so that it reads as it is."""
    measured = rows(results, workloads)
    shown = [c for c in contenders if any(c.name in row.figures for row in measured)]
    labels = {contender.name: contender.label for contender in contenders}
    beside = [name for name in RATIOS if any(name in row.ratios for row in measured)]
    head = ["workload", "unit", *(contender.label for contender in shown)]
    head += [f"{SUBJECT} ÷ {labels[name]}" for name in beside]
    body = [
        [
            row.workload.label,
            row.workload.unit,
            *(_number(row.medians.get(contender.name)) for contender in shown),
            *(_ratio(row.ratios.get(name)) for name in beside),
        ]
        for row in measured
    ]
    return f"**{results.place.label}**\n\n{_markdown(head, body)}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"  # noqa: RUF001  # A dash, as in print.


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"  # noqa: RUF001


def _markdown(head: list[str], body: list[list[str]]) -> str:
    widths = [max(len(line[at]) for line in [head, *body]) for at in range(len(head))]
    rule = [
        "-" * width if at < 2 else "-" * (width - 1) + ":" for at, width in enumerate(widths)
    ]
    lines = [
        [
            cell.ljust(width) if at < 2 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in [head, rule, *body]
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def as_json(
    about: dict[str, Any], all_results: Sequence[Results], workloads: Sequence[Workload]
) -> str:
    """Everything measured, each round's figure included, with `about` at the head."""
    places = [
        {
            "name": results.place.name,
            "label": results.place.label,
            "image_bytes": results.place.size_bytes,
            "rows": [_row_as_json(row) for row in rows(results, workloads)],
            "failures": results.failures,
        }
        for results in all_results
    ]
    return json.dumps({**about, "places": places}, indent=2, ensure_ascii=False) + "\n"


def _row_as_json(row: Row) -> dict[str, Any]:
    return {
        "workload": row.workload.name,
        "label": row.workload.label,
        "unit": row.workload.unit,
        "medians": {name: round(value, 1) for name, value in row.medians.items()},
        f"{SUBJECT}_ratios": {name: round(value, 3) for name, value in row.ratios.items()},
        "rounds": {
            name: [round(values[number], 1) for number in sorted(values)]
            for name, values in row.figures.items()
        },
    }
