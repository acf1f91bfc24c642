"""The pool of grammars with a vocabulary that a test holds up: deadlines, order, forgetting."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from services.worker.engine import grammars
from services.worker.engine.errors import GrammarError
from services.worker.engine.grammars import Grammars, Outcome, Verdict
from services.worker.scheduler.request import Grammar, Request
from services.worker.scheduler.step import Constrained
from tests.support.offline import prompt_of, request_of
from tests.support.waiting import eventually_sync

STOP = 9


class SlowConstraint:
    """Takes ids 1, 2, 3 …; complete after its limit, fails at 13."""

    def __init__(self, gate: threading.Event, limit: int) -> None:
        self.stops = frozenset({STOP})
        self.bits = np.full(4, limit, np.uint8)
        self._gate = gate
        self._left = limit

    def take(self, tokens: list[int]) -> None:
        if 13 in tokens:
            raise GrammarError("thirteen")
        self._left -= len(tokens)

    def find_next(self) -> bool:
        self._gate.wait(30)
        return self._left > 0

    def probe(self) -> None: ...


class SlowVocabulary:
    """A grammar "slow" waits for the gate, "broken" raises what nobody expects, a number is its limit."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self._open = threading.Event()
        self._open.set()

    def constraint(self, request: Request) -> SlowConstraint:
        assert request.grammar is not None
        source = request.grammar.source
        if source == "broken":
            raise RuntimeError("a bug")
        return SlowConstraint(
            self.gate if source == "slow" else self._open, int(source) if source.isdigit() else 5
        )


@pytest.fixture
def vocabulary() -> Iterator[SlowVocabulary]:
    found = SlowVocabulary()
    yield found
    found.gate.set()


@pytest.fixture
def pool(vocabulary: SlowVocabulary) -> Iterator[Grammars]:
    found = Grammars(vocabulary)  # type: ignore[arg-type]
    yield found
    found.close()


def asked(handle: int, source: str, *delivered: int) -> Request:
    return request_of(handle, prompt_of(3), grammar=Grammar("regex", source), delivered=np.array(delivered))


def heard(pool: Grammars, count: int) -> list[Verdict]:
    found: list[Verdict] = []

    def enough() -> bool:
        found.extend(pool.verdicts())
        return len(found) >= count

    eventually_sync(enough, f"{count} verdicts")
    return sorted(found, key=lambda each: each.handle)


def test_a_slow_grammar_holds_up_no_other(pool: Grammars, vocabulary: SlowVocabulary) -> None:
    pool.begin(asked(1, "slow"))
    pool.begin(asked(2, "5"))
    assert heard(pool, 1) == [Verdict(2, Outcome.READY)]
    vocabulary.gate.set()
    assert heard(pool, 1) == [Verdict(1, Outcome.READY)]


def test_one_past_its_deadline_fails_alone(pool: Grammars, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammars, "DEADLINE_S", 0.02)
    pool.begin(asked(1, "slow"))
    (verdict,) = heard(pool, 1)
    assert (verdict.handle, verdict.outcome) == (1, Outcome.FAILED)
    assert "simplify" in verdict.message
    assert list(pool.verdicts()) == []


def test_time_in_the_queue_does_not_count(
    pool: Grammars, vocabulary: SlowVocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    for handle in (1, 2):
        pool.begin(asked(handle, "slow"))
    pool.begin(asked(3, "5"))
    monkeypatch.setattr(grammars, "DEADLINE_S", 0.02)
    assert [each.handle for each in heard(pool, 2)] == [1, 2]
    monkeypatch.undo()
    vocabulary.gate.set()
    assert heard(pool, 1) == [Verdict(3, Outcome.READY)]


def test_delivered_ids_are_replayed(pool: Grammars) -> None:
    pool.begin(asked(1, "50", *[1] * 49))
    pool.begin(asked(2, "50", *[1] * 50))
    pool.begin(asked(3, "50", 1, 13))
    assert heard(pool, 3) == [
        Verdict(1, Outcome.READY),
        Verdict(2, Outcome.COMPLETE),
        Verdict(3, Outcome.FAILED, "thirteen"),
    ]


def test_each_token_asks_for_the_next_mask_until_the_end(pool: Grammars) -> None:
    pool.begin(asked(1, "2"))
    assert heard(pool, 1) == [Verdict(1, Outcome.READY)]
    pool.advance(1, 4)
    assert heard(pool, 1) == [Verdict(1, Outcome.READY)]
    pool.advance(1, 4)
    assert heard(pool, 1) == [Verdict(1, Outcome.COMPLETE)]


def test_a_stop_id_a_failed_row_and_an_unknown_handle_ask_for_nothing(pool: Grammars) -> None:
    pool.begin(asked(1, "5"))
    heard(pool, 1)
    pool.advance(1, STOP)
    pool.advance(1, -2)
    pool.advance(77, 4)
    assert not pool.imminent
    assert list(pool.verdicts()) == []


def test_what_is_forgotten_is_heard_no_more_and_its_handle_is_free(
    pool: Grammars, vocabulary: SlowVocabulary
) -> None:
    pool.begin(asked(1, "slow"))
    pool.forget(1)
    pool.forget(1)
    pool.begin(asked(1, "3"))
    assert heard(pool, 1) == [Verdict(1, Outcome.READY)]
    vocabulary.gate.set()
    assert pool.masks([Constrained(0, 1)]).bits.tolist() == [[3] * 4]
    assert list(pool.verdicts()) == []


def test_masks_are_those_of_the_rows(pool: Grammars) -> None:
    for handle in (3, 4):
        pool.begin(asked(handle, str(handle)))
    heard(pool, 2)
    masks = pool.masks([Constrained(5, 4), Constrained(7, 3)])
    assert masks.rows.tolist() == [5, 7]
    assert masks.bits.tolist() == [[4] * 4, [3] * 4]


def test_a_bug_fails_the_request_without_its_words(pool: Grammars) -> None:
    pool.begin(asked(1, "broken"))
    (verdict,) = heard(pool, 1)
    assert verdict == Verdict(1, Outcome.FAILED, "the grammar cannot be processed")
