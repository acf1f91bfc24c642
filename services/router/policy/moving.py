"""Which running streams are better off on another worker, recomputation included. Pure.

    here     what is left of it × the step of its worker now
    there    prefill that waits there + its prompt and output computed again + what is left × the step with it

What comes meanwhile goes where there is most room, so the difference between workers fades while arrivals
even it out: of a difference that is gone long before the stream's end little is left.

It is moved when that saves `MovingSettings.saved_s`, and `factor` times what is computed again, when the
others do not lose more by it there than they gain here, and when its worker has `uneven` times the other's
load in the terms of placement. In a pool that placement has evened out nothing is gained: whoever comes next
takes the place that was left, and moves only cost. What is left is what `expected_left` says. Each move
counts at once in what is believed of both workers, so that moves of one survey agree with each other and none
is undone by the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from services.router.policy.fleet import Fleet
from services.router.policy.speed import Floats, Mask
from services.router.policy.ticket import Ticket

_CONSIDERED = 64
_WINDOWS_S = (5.0, 30.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class MovingSettings:
    """When a move pays."""

    saved_s: float = 2.0
    """Least that a stream's end must come sooner, in seconds."""
    factor: float = 2.0
    """And least in times of what is computed again for it."""
    slower: float = 1.5
    """Streams are looked at on workers whose steps last so many times as long as elsewhere."""
    uneven: float = 2.0
    """Sequences, each as slow as its worker, that must be on a worker for one on the other."""
    most: int = 4
    """Streams a survey."""


class Stream(NamedTuple):
    """One that runs: its ticket as if it came back now."""

    ticket: Ticket
    worker: str
    numerics: frozenset[tuple[str, str]] = frozenset()
    """Labels of workers that would go on exactly as its own does."""


class Move(NamedTuple):
    """A stream that is to leave its worker for another."""

    number: int
    worker: str
    to: str
    saved_s: float


def expected_left(expected: int, made: int, most: int) -> int:
    """Output tokens to come of one that has made so many, of at most `most`.

    What is longer than expected tends to be much longer: half of what there is comes on top.
    """
    return max(1, min(max(expected - made, made // 2), most - made))


def arrivals_a_s(ages_s: Iterable[float]) -> float:
    """Requests that workers were given a second, by how long ago what is there now was given to them.

    Of short ones few are there for long, of rare ones few have just come: the larger of two counts.
    """
    ages = np.fromiter(ages_s, float)
    return max(float(np.count_nonzero(ages < window_s)) / window_s for window_s in _WINDOWS_S)


class _Steps:
    """Steps of all workers as decodes come and go. [positions]"""

    def __init__(self, fleet: Fleet) -> None:
        self._a, self._b, _, self._d, self._e, _ = fleet.speeds.models
        self.sequences = fleet.sequences.copy()
        self._context = fleet.running_context.copy()
        self.queue_s = fleet.busy(foreground=True).queue_s.copy()
        self._slowness = fleet.speeds.slowness

    def now_s(self) -> Floats:
        """Each worker's decode step."""
        return self._step_s(self.sequences, self._context)

    def with_s(self, context: float) -> Floats:
        """The same with one sequence more that reads so many tokens."""
        return self._step_s(self.sequences + 1, self._context + context)

    def more_s(self, context: float) -> Floats:
        """What such a sequence adds to a step."""
        return np.asarray(self._b + self._e + context * self._d)

    def load(self) -> Floats:
        """What placement evens out."""
        return np.asarray(self.sequences * self._slowness)

    def lasts(self, remaining_s: float, ready: Mask, arrivals_a_s: float) -> float:
        """The part of a difference, 0 to 1, that is there on average over so much time."""
        load = self.load()[ready]
        lacking = np.maximum(0.0, load.mean() - load) / self._slowness[ready]
        even_s = float(lacking.sum()) / max(arrivals_a_s, 1e-9)
        if even_s >= remaining_s:
            return 1.0 - remaining_s / max(2.0 * even_s, 1e-9)
        return even_s / (2.0 * remaining_s)

    def load_with(self) -> Floats:
        """The same with one sequence more."""
        return np.asarray((self.sequences + 1) * self._slowness)

    def move(self, here: int, there: int, context: float, prefill_s: float) -> None:
        """A stream goes from one worker to another."""
        for position, sign in ((here, -1), (there, 1)):
            self.sequences[position] = max(0.0, self.sequences[position] + sign)
            self._context[position] = max(0.0, self._context[position] + sign * context)
        self.queue_s[there] += prefill_s

    def _step_s(self, sequences: Floats, context: Floats) -> Floats:
        return np.asarray(self._a + sequences * (self._b + self._e) + context * self._d)


def slow_workers(fleet: Fleet, settings: MovingSettings) -> list[str]:
    """Workers whose streams might gain by leaving; none in a pool that is even. Constant work a worker."""
    takers = fleet.ready & fleet.foreground_open
    if len(fleet) < 2 or not takers.any() or not settings.most:
        return []
    steps = _Steps(fleet)
    best_s = float(steps.with_s(0.0)[takers].min())
    least = float(steps.load_with()[takers].min())
    slow = (
        fleet.ready & (steps.now_s() > settings.slower * best_s) & (steps.load() >= settings.uneven * least)
    )
    return [fleet.at(position).key for position in slow.nonzero()[0].tolist()]


def moves(
    streams: Iterable[Stream], fleet: Fleet, settings: MovingSettings, arrivals_a_s: float
) -> Iterator[Move]:
    """The moves that pay, at most `most`; those with most left to do are looked at first.

    Args:
        arrivals_a_s: requests that were given to workers a second, lately.
    """
    left = sorted(streams, key=lambda each: each.ticket.expected_output, reverse=True)
    steps, found = _Steps(fleet), 0
    for stream in left[:_CONSIDERED]:
        if found >= settings.most:
            return
        move = _best(stream, fleet, steps, settings, arrivals_a_s)
        if move is not None:
            found += 1
            yield move


def _best(
    stream: Stream, fleet: Fleet, steps: _Steps, settings: MovingSettings, arrivals_a_s: float
) -> Move | None:
    here = fleet.index.positions.get(stream.worker)
    takers = _takers(stream, fleet)
    if here is None or not takers.any():
        return None
    takers[here] = False
    takers &= settings.uneven * steps.load_with() <= steps.load()[here]
    context, remaining = stream.ticket.prefill_tokens, stream.ticket.expected_output
    prefill_s = _prefill_s(fleet, context)
    here_s = remaining * float(steps.now_s()[here])
    lasting = steps.lasts(here_s, fleet.ready, arrivals_a_s)
    saved_s = lasting * (here_s - remaining * steps.with_s(context)) - steps.queue_s - prefill_s
    more_s = lasting * remaining * steps.more_s(context)
    lost_there_s = steps.sequences * (more_s + prefill_s)
    gained_here_s = max(0.0, float(steps.sequences[here]) - 1) * float(more_s[here])
    pays = takers & (saved_s >= settings.saved_s + settings.factor * prefill_s)
    pays &= saved_s + gained_here_s > lost_there_s
    if not pays.any():
        return None
    there = int(np.where(pays, saved_s, -np.inf).argmax())
    steps.move(here, there, context, float(prefill_s[there]))
    return Move(stream.ticket.number, stream.worker, fleet.at(there).key, float(saved_s[there]))


def _takers(stream: Stream, fleet: Fleet) -> Mask:
    ticket = stream.ticket
    able: Mask = fleet.suited(ticket) & fleet.affordable(ticket.cost, ticket.foreground)
    return able & fleet.labelled(stream.numerics, frozenset()) if stream.numerics else able.copy()


def _prefill_s(fleet: Fleet, tokens: int) -> Floats:
    """Seconds of computing so many tokens again, alone, by worker."""
    a, b, c, *_ = fleet.speeds.models
    chunks = max(1.0, tokens / 2048)
    return np.asarray(chunks * a + tokens * b + tokens * (tokens / 2) * c)
