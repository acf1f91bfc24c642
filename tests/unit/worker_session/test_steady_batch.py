"""Sequences that get an id each with every step: whatever comes between, each router reads each id once."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import islice

import pytest
from headrace.v1 import session_pb2 as pb
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from services.worker.engine.report import TokenReport
from services.worker.metrics import WorkerMetrics
from services.worker.scheduler.events import NO_OUTPUTS, Outputs
from services.worker.scheduler.kept import joined
from services.worker.session.desk import Desk
from services.worker.session.session import Session
from services.worker.session.steady import LEAST, MOST_STEPS
from tests.support.session_engine import RecordingEngine, finish

JOBS = LEAST + 4
PROMPT = [1, 2, 3]


def key(slot: int) -> bytes:
    return slot.to_bytes(32, "big")


class Reader:
    """One router: what it has read of each slot, which must go on where it was."""

    def __init__(self, desk: Desk, slots: Iterable[int], *, counts: bool) -> None:
        self.desk = desk
        self.counts = counts
        self.read: dict[int, list[int]] = {slot: [] for slot in slots}
        self.handles: dict[int, int] = {}
        self.ended: set[int] = set()
        self.claimed: list[pb.Claimed] = []
        self.columns = 0
        self.open(pb.Welcome(router_id="r"), {})

    def submit(self) -> None:
        """One request a slot."""
        self.take()  # credit
        for slot in self.read:
            submit = pb.Submit(slot=slot, request_id=f"r{slot}", attempt=1, prompt_tokens=3, max_tokens=999)
            submit.prompt_ids.extend(PROMPT)
            submit.claim_key = key(slot)
            self.send(submits=[submit])

    def open(self, welcome: pb.Welcome, held: dict[int, object]) -> None:
        welcome.next_tokens, welcome.token_counts = True, self.counts
        self.session = Session(self.desk, welcome, 0.0)
        self.session.begin(welcome, held, 0.0)  # type: ignore[arg-type]
        self.number = 2

    def send(self, **fields: object) -> None:
        self.number += 1
        self.session.handle(pb.RouterFrame(number=self.number, **fields), 0.0)  # type: ignore[arg-type]

    def break_off(self) -> None:
        """The session breaks; the next one goes on with all that runs, from where the reader is."""
        held = self.session.end()
        going_on = [slot for slot in self.read if slot not in self.ended]
        resume = [
            pb.ResumeRequest(slot=slot, attempt=1, next_index=len(self.read[slot]), handle=self.handles[slot])
            for slot in going_on
        ]
        welcome = pb.Welcome(router_id="r", resume=resume)
        self.open(welcome, held)  # type: ignore[arg-type]

    def take(self) -> None:
        frame = self.session.take()
        if frame is None:
            return
        self.claimed += frame.claimed
        rows = frame.next_tokens
        self.columns += len(rows.slots)
        ids, counts = iter(rows.token_ids), rows.counts or [1] * len(rows.slots)
        for slot, index, count in zip(rows.slots, rows.indices, counts, strict=True):
            self._hear(slot, index, list(islice(ids, count)))
        assert next(ids, None) is None
        for update in frame.updates:
            self._hear(update.slot, update.first_index, list(update.token_ids))
            if update.HasField("end"):
                self.ended.add(update.slot)

    def _hear(self, slot: int, index: int, ids: list[int]) -> None:
        assert slot not in self.ended
        assert not ids or index == len(self.read[slot]), "an id is missing or came twice"
        self.read[slot] += ids


class House:
    """A desk with two routers, of which each has half of the requests, in turn."""

    def __init__(self, *, counts: bool = True) -> None:
        self.engine = RecordingEngine()
        self.desk = Desk(self.engine, WorkerMetrics(CollectorRegistry()), lambda grace_s: None)
        self.desk.report(self.engine.report(), time.monotonic())
        slots = range(JOBS)
        self.readers = [Reader(self.desk, slots[which::2], counts=counts) for which in (0, 1)]
        for reader in self.readers:
            reader.submit()
        self.made: dict[int, list[int]] = {handle: [] for handle in self.engine.requests}
        self.running = list(self.made)
        handles = iter(self.made)
        for reader in self.readers:
            reader.handles = {slot: next(handles) for slot in reader.read}

    def step(
        self, which: slice = slice(None), *, ends: bool = False, whole: bool = False, steps: int = 1
    ) -> None:
        """One id each of some, of so many steps that are told together; the first may end with the last."""
        heard = self.running[which]
        over = heard[:1] if ends else []
        self.running = [handle for handle in self.running if handle not in over]
        parts = [self._outputs(heard) for _ in range(steps)]
        report = self.engine.report(finished=[finish(handle) for handle in over])
        report = replace(report, outputs=joined(parts) if heard else NO_OUTPUTS)
        only_tokens = TokenReport(report.outputs, report.progress)
        self.desk.report(report if over or whole else only_tokens, time.monotonic())

    def _outputs(self, heard: Sequence[int]) -> Outputs:
        for handle in heard:
            self.made[handle].append(1000 * handle + len(self.made[handle]))
        tokens: dict[int, Sequence[int]] = {handle: self.made[handle][-1:] for handle in heard}
        return self.engine.report(tokens).outputs

    def claim(self, reader: Reader) -> None:
        """The answer has every id that was made, told or not."""
        slot = min(reader.read)
        reader.claimed.clear()
        reader.send(claims=[pb.Claim(claim_key=key(slot))])
        while not (reader.claimed and reader.claimed[-1].last):
            reader.take()
        ids = [token for piece in reader.claimed for token in piece.ids]
        assert ids == PROMPT + self.made[reader.handles[slot]]

    def check_all(self) -> None:
        for reader in self.readers:
            for _ in range(8):
                reader.take()
            for slot, handle in reader.handles.items():
                assert reader.read[slot] == self.made[handle]
                assert (slot in reader.ended) is (handle not in self.running)


EVENTS = st.sampled_from(
    ["step"] * 6 + ["steps"] * 3 + ["take", "take all", "whole", "some", "most", "end", "claim", "break"]
)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(EVENTS, st.integers(0, 1)), max_size=60))
def test_each_id_is_read_once_and_in_order_whatever_comes_between(events: list[tuple[str, int]]) -> None:
    house = House()
    for event, which in events:
        reader = house.readers[which]
        match event:
            case "take":
                reader.take()
            case "take all":
                for each in house.readers:
                    each.take()
            case "some":
                house.step(slice(which, None, 2))
            case "most":
                house.step(slice(LEAST), steps=1 + 2 * which)
            case "claim":
                house.claim(reader)
            case "break":
                reader.break_off()
            case "steps":
                house.step(steps=2 + which)
                reader.take()
            case _:
                house.step(ends=event == "end", whole=event == "whole")
                if which:
                    for each in house.readers:
                        each.take()
    house.check_all()


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("steps", [1, 4])
def test_a_batch_that_stays_the_same_is_told_as_columns_for_as_long_as_it_likes(
    whole: bool, steps: int
) -> None:
    house = House()
    for _ in range(2 * MOST_STEPS + 5):
        house.step(whole=whole, steps=steps)
        for reader in house.readers:
            reader.take()
    assert sum(reader.columns for reader in house.readers) == JOBS * (2 * MOST_STEPS + 5)
    house.check_all()


@pytest.mark.parametrize(("steps", "others"), [(1, 1), (1, 3), (4, 1), (4, 3)])
def test_ids_that_wait_in_the_line_go_in_one_frame_with_those_of_a_batch(steps: int, others: int) -> None:
    house = House()
    for _ in range(2):
        house.step(slice(LEAST), steps=steps)
        for reader in house.readers:
            reader.take()
    house.step(slice(LEAST, None), steps=others)  # ends the batch, and its frame is not written yet
    house.step(slice(LEAST), steps=steps)
    for reader in house.readers:
        reader.take()
    house.check_all()


def test_an_older_router_gets_several_ids_of_a_request_as_updates() -> None:
    house = House(counts=False)
    for _ in range(5):
        house.step(steps=3)
        for reader in house.readers:
            reader.take()
    assert not any(reader.columns for reader in house.readers)
    house.check_all()


def test_a_request_that_another_router_takes_over_goes_on_there_where_it_was() -> None:
    house = House()
    old, new = house.readers
    for _ in range(5):
        house.step()
        for reader in house.readers:
            reader.take()
    handle, slot = old.handles.pop(0), 500
    new.handles[slot], new.read[slot] = handle, list(house.made[handle])
    new.send(
        adoptions=[pb.Adopt(handle=handle, slot=slot, attempt=2, next_index=5, claim_key=key(0))],
    )
    for _ in range(5):
        house.step()
        for reader in house.readers:
            reader.take()
    assert old.ended == {0}
    house.check_all()
