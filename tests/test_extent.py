"""Extents: cutting, merging, and the one loop that splits a request.  Against byte-by-byte lists.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdisk.extent import Extent, Kind, merged, pieces
from vdisk.host import HostFile

Place = tuple[int, Kind, object, int | None]


class _Host:
    """Stands for a host file: only its identity counts here."""


_A, _B = _Host(), _Host()


def extent(start: int, length: int, kind: Kind, host: object, host_offset: int | None) -> Extent:
    assert host is None or isinstance(host, _Host | HostFile)
    return Extent(start, length, kind, host, host_offset)  # type: ignore[arg-type]


@st.composite
def maps(draw: st.DrawFn) -> list[Extent]:
    """A contiguous map of permuted, repeated and neighbouring places."""
    at, found = draw(st.integers(0, 50)), []
    for _ in range(draw(st.integers(1, 12))):
        length = draw(st.integers(1, 20))
        kind = draw(st.sampled_from(Kind))
        host = draw(st.sampled_from([_A, _B] if kind is Kind.DATA else [_A, None]))
        follows = found and found[-1].host is host and host is not None and draw(st.booleans())
        if follows:
            place = found[-1].host_offset + found[-1].length
        else:
            place = None if host is None else draw(st.integers(0, 100))
        found.append(extent(at, length, kind, host, place))
        at += length
    return found


def by_byte(extents: list[Extent]) -> list[Place]:
    """Every guest byte on its own: (guest offset, kind, host, host offset)."""
    return [
        (e.guest_offset + i, e.kind, e.host, None if e.host_offset is None else e.host_offset + i)
        for e in extents
        for i in range(e.length)
    ]


@given(maps())
def test_merging_changes_no_byte_and_leaves_no_neighbours_that_could_be_joined(
    extents: list[Extent],
) -> None:
    joined = list(merged(extents))
    assert by_byte(joined) == by_byte(extents)
    for left, right in pairwise(joined):
        last, first = by_byte([left])[-1], by_byte([right])[0]
        same_kind = last[1:3] == first[1:3]
        adjoins = (last[3] is None) == (first[3] is None) and (
            last[3] is None or first[3] == last[3] + 1
        )
        assert not (same_kind and adjoins)


@given(maps(), st.data())
def test_pieces_give_every_byte_of_the_request_its_own_place_in_the_buffer(
    extents: list[Extent], data: st.DataObject
) -> None:
    start, end = extents[0].guest_offset, extents[-1].guest_end
    offset = data.draw(st.integers(start, end))
    length = data.draw(st.integers(0, end - offset))
    overlapping = [e for e in extents if e.guest_end > offset]
    found = list(pieces(overlapping, offset, length))
    assert by_byte([piece for piece, _ in found]) == [
        place for place in by_byte(extents) if offset <= place[0] < offset + length
    ]
    buffer = [index for _, part in found for index in range(part.start, part.stop)]
    assert buffer == list(range(length))


@given(maps(), st.data())
def test_a_cut_keeps_what_lies_inside_and_nothing_else(
    extents: list[Extent], data: st.DataObject
) -> None:
    whole = extents[0]
    start = data.draw(st.integers(0, whole.guest_end - 1))
    end = data.draw(st.integers(max(start, whole.guest_offset) + 1, whole.guest_end + 9))
    cut = whole.cut(start, end)
    assert by_byte([cut]) == [p for p in by_byte([whole]) if start <= p[0] < end]


@given(maps(), st.integers(-60, 60))
def test_shifting_moves_the_guest_and_not_the_host(extents: list[Extent], distance: int) -> None:
    shifted = [e.shifted(distance) for e in extents]
    assert [(p[0] - distance, *p[1:]) for p in by_byte(shifted)] == by_byte(extents)


ONE = extent(0, 10, Kind.DATA, _A, 100)
TWO = extent(10, 10, Kind.DATA, _A, 200)


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param([], id="nothing"),
        pytest.param([ONE], id="ends early"),
        pytest.param([ONE, replace(TWO, guest_offset=11)], id="gap"),
        pytest.param([ONE, replace(TWO, guest_offset=9)], id="overlap"),
        pytest.param([ONE, ONE, TWO], id="twice"),
        pytest.param([replace(ONE, guest_offset=5), TWO], id="begins late"),
        pytest.param([ONE, replace(TWO, length=0), TWO], id="empty run"),
    ],
)
def test_data_is_never_moved_by_a_map_with_a_gap_an_overlap_or_an_early_end(
    bad: list[Extent],
) -> None:
    with pytest.raises(AssertionError, match="map"):
        list(pieces(bad, 2, 17))


def test_pieces_ask_for_no_more_extents_than_the_request_needs() -> None:
    """A map of a large disk is computed lazily; a small read must not compute all of it."""
    asked = []

    def lazily() -> object:
        for one in (ONE, TWO):
            asked.append(one)
            yield one

    assert len(list(pieces(lazily(), 0, 10))) == 1  # type: ignore[arg-type]
    assert asked == [ONE]


def test_a_zero_run_with_a_place_does_not_join_one_without() -> None:
    placed = extent(0, 5, Kind.ZERO, _A, 0)
    unplaced = extent(5, 5, Kind.ZERO, None, None)
    assert list(merged([placed, unplaced])) == [placed, unplaced]
    assert list(merged([unplaced, replace(unplaced, guest_offset=10)])) == [
        replace(unplaced, length=10)
    ]
