from __future__ import annotations

from services.common.seldom import MOST_KEYS, Seldom


def test_each_thing_is_told_once_in_a_while() -> None:
    seldom = Seldom(every_s=60.0)
    assert [seldom.due("a", now) for now in (0.0, 1.0, 59.9, 60.0, 61.0)] == [True, False, False, True, False]
    assert seldom.due("b", 1.0)


def test_many_things_take_bounded_room() -> None:
    seldom = Seldom()
    for number in range(3 * MOST_KEYS):
        assert seldom.due(str(number), float(number) / 1e6)
    assert len(seldom._told) == MOST_KEYS
