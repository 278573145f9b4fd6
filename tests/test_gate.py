"""The gate: many inside, or one alone; whoever waits to be alone is not overtaken for ever."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from vdisk.gate import Gate

PATIENCE = 30


def test_many_are_inside_at_once_and_nobody_beside_one_who_is_alone() -> None:
    gate = Gate()
    inside, alone, wrong = [0], [0], []
    counting = threading.Lock()
    met = threading.Barrier(2)

    def share(number: int) -> None:
        for turn in range(300):
            with gate:
                with counting:
                    inside[0] += 1
                if alone[0]:
                    wrong.append("shared while one was alone")
                if turn == 0 and number < 2:
                    met.wait(PATIENCE)  # Two are inside at once, or this fails.
                with counting:
                    inside[0] -= 1

    def be_alone() -> None:
        for _ in range(100):
            with gate.alone():
                alone[0] += 1
                if inside[0] or alone[0] != 1:
                    wrong.append("not alone")
                alone[0] -= 1

    with ThreadPoolExecutor(6) as pool:
        work = [pool.submit(share, number) for number in range(4)]
        work += [pool.submit(be_alone) for _ in range(2)]
        for each in work:
            each.result(PATIENCE)
    assert wrong == []


def test_a_try_never_waits() -> None:
    gate = Gate()
    assert gate.try_enter()
    assert gate.try_enter()
    gate.leave()
    gate.leave()
    with gate.alone():
        assert not gate.try_enter()
    assert gate.try_enter()
    gate.leave()


def test_who_waits_to_be_alone_comes_before_those_who_come_later() -> None:
    gate = Gate()
    order: list[str] = []
    gate.__enter__()
    alone = threading.Thread(target=lambda: _enter_alone(gate, order))
    alone.start()
    while gate.try_enter():  # Until it waits: from then on nobody gets in.
        gate.leave()
    later = threading.Thread(target=lambda: _enter(gate, order))
    later.start()
    gate.leave()
    alone.join(PATIENCE)
    later.join(PATIENCE)
    assert order == ["alone", "later"]


def _enter_alone(gate: Gate, order: list[str]) -> None:
    with gate.alone():
        order.append("alone")


def _enter(gate: Gate, order: list[str]) -> None:
    with gate:
        order.append("later")
