"""What each session may submit: the engine's window, split so that N routers can never overfill it. Pure.

    free = window of the last report - what was submitted since
    a session's exposure = the most that its router may still submit under any grant it may be using
    sum of exposures <= free                                                    (the invariant)

A grant cannot be taken back: an older, larger one counts until the router has acknowledged a frame after it.
So a session is granted its share of what is free, and never what others may still use. Shares follow demand,
with a part split evenly so that a router without demand can begin at once; odd units go to who was admitted
least recently.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple, Self

EVEN_PART = 0.25  # of the window is split evenly, the rest by demand
NEAR = 16  # a window whose blocks differ by less than one part of so many is the same
NEAR_TOKENS = 4  # likewise of tokens: how many the engine can take is an estimate that moves with each step
_MOST = 10**9


class Room(NamedTuple):
    """An amount of work: uncached prompt tokens, sequences, KV blocks."""

    prefill_tokens: int = 0
    sequences: int = 0
    kv_blocks: int = 0

    def plus(self, other: Self) -> Room:
        """The sum."""
        return Room(
            self.prefill_tokens + other.prefill_tokens,
            self.sequences + other.sequences,
            self.kv_blocks + other.kv_blocks,
        )

    def minus(self, other: Self) -> Room:
        """The difference; may be negative."""
        return Room(
            self.prefill_tokens - other.prefill_tokens,
            self.sequences - other.sequences,
            self.kv_blocks - other.kv_blocks,
        )

    def least(self, other: Self) -> Room:
        """The smaller of each."""
        return Room(
            min(self.prefill_tokens, other.prefill_tokens),
            min(self.sequences, other.sequences),
            min(self.kv_blocks, other.kv_blocks),
        )

    def most(self, other: Self) -> Room:
        """The larger of each."""
        return Room(
            max(self.prefill_tokens, other.prefill_tokens),
            max(self.sequences, other.sequences),
            max(self.kv_blocks, other.kv_blocks),
        )

    def is_about(self, other: Self) -> bool:
        """Whether it is so near to another that nobody need be told; sequences are told one by one."""
        return (
            self.sequences == other.sequences
            and NEAR_TOKENS * abs(self.prefill_tokens - other.prefill_tokens) <= other.prefill_tokens
            and NEAR * abs(self.kv_blocks - other.kv_blocks) <= other.kv_blocks
        )


NOTHING = Room()


class Demand(NamedTuple):
    """What a router would submit if it could."""

    prefill_tokens: int = 0
    requests: int = 0


NO_DEMAND = Demand()


class _Charge(NamedTuple):
    session: int
    cost: Room
    command: int | None  # of the engine; None: its prompt is not here yet


@dataclass(slots=True)
class _Grant:
    frame: int
    left: Room


@dataclass(slots=True)
class _Account:
    grants: deque[_Grant] = field(default_factory=deque)
    demand: Demand = NO_DEMAND
    admitted: int = 0  # when it was last admitted, as a running number
    share: Room = NOTHING
    charged: Room = NOTHING  # what was submitted since the last report
    exposure: Room = NOTHING  # the most that any of its grants leaves

    def granted(self, frame: int, room: Room) -> None:
        """One more grant; in the place of the last, when it takes nothing of that back."""
        if self.grants and room.least(self.grants[-1].left) == self.grants[-1].left:
            self.grants[-1].left = room
        else:
            self.grants.append(_Grant(frame, room))
        self.exposure = self.exposure.most(room)

    def charge(self, cost: Room, admission: int) -> None:
        """A submission used some, of whichever grant it was."""
        self.charged = self.charged.plus(cost)
        for grant in self.grants:
            grant.left = grant.left.minus(cost)
        self.exposure = self.exposure.minus(cost).most(NOTHING)
        self.admitted = admission

    def forget_before(self, frame: int) -> bool:
        """Grants that were replaced by `frame` are not used any more; whether there were such."""
        if len(self.grants) < 2 or self.grants[1].frame > frame:
            return False
        while len(self.grants) > 1 and self.grants[1].frame <= frame:
            self.grants.popleft()
        self.exposure = NOTHING
        for grant in self.grants:
            self.exposure = self.exposure.most(grant.left)
        return True


class CreditBook:
    """The accounts of all sessions of a worker."""

    def __init__(self) -> None:
        self.changes = 0  # of what grants follow from: while it stands still they need not be told again
        self._window = NOTHING
        self._idle = True
        self._accounts: dict[int, _Account] = {}
        self._charges: dict[int, _Charge] = {}
        self._charged = NOTHING  # by all of them
        self._admissions = 0
        self._divided = False  # whether shares are those of the last report and demand

    def open(self, session: int) -> None:
        """A session begins, without credit until its first grant."""
        self._accounts[session] = _Account()
        self._changed()

    def close(self, session: int) -> None:
        """A session ends: its grants are void, what it submitted stays."""
        del self._accounts[session]
        self._forget(
            [
                key
                for key, charge in self._charges.items()
                if charge.session == session and charge.command is None
            ]
        )
        self._changed()

    def report(self, window: Room, last_command: int, *, idle: bool) -> None:
        """The engine can start `window` more than all it was given up to `last_command`."""
        if not self._charges and idle == self._idle and window.is_about(self._window):
            return
        self._window = window
        self._idle = idle
        self._forget(
            [
                key
                for key, charge in self._charges.items()
                if charge.command is not None and charge.command <= last_command
            ]
        )
        self._changed()

    def demand(self, session: int, demand: Demand) -> None:
        """What waits in a session's router."""
        account, told = self._accounts[session], Demand(*(min(value, _MOST) for value in demand))
        if told != account.demand:
            account.demand = told
            self._changed()

    def admit(self, session: int, key: int, cost: Room) -> bool:
        """Charges a submission, named `key`, unless the session has no credit at all.

        One request may overdraw tokens and blocks: a prompt larger than the window would wait for ever.
        """
        room = self._accounts[session].exposure
        if room.sequences < 1 or room.prefill_tokens < 1 or (room.kv_blocks < 1 and not self._idle):
            return False
        self.charge(session, key, cost)
        return True

    def charge(self, session: int, key: int, cost: Room) -> None:
        """Charges a submission that was admitted, whatever credit the session has here."""
        self._admissions += 1
        self._accounts[session].charge(cost, self._admissions)
        self._charged = self._charged.plus(cost)
        self.changes += 1
        self._charges[key] = _Charge(session, cost, None)

    def submitted(self, key: int, command: int) -> None:
        """A charged request went to the engine as `command`: from its report on, the window says it."""
        charge = self._charges.get(key)
        if charge is not None:
            self._charges[key] = charge._replace(command=command)

    def released(self, key: int) -> None:
        """A charged request will never go to the engine."""
        if key in self._charges:
            self._forget([key])
            self.changes += 1

    def grant(self, session: int, frame: int) -> Room:
        """Credit to send in `frame`, counted from the last report on, as the wire wants it."""
        if not self._divided:
            self._divide()
        account = self._accounts[session]
        room = self.free()
        for other in self._accounts.values():
            if other is not account:
                room = room.minus(other.exposure)
        room = room.least(account.share).most(NOTHING)
        account.granted(frame, room)
        return room.plus(account.charged)

    def acknowledged(self, session: int, frame: int) -> None:
        """The router has handled `frame`: it uses no grant from before it any more."""
        self.changes += self._accounts[session].forget_before(frame)

    def free(self) -> Room:
        """What nobody was given or has submitted, exposures not counted."""
        return self._window.minus(self._charged).most(NOTHING)

    def exposure(self) -> Room:
        """What all routers together may still submit."""
        total = NOTHING
        for account in self._accounts.values():
            total = total.plus(account.exposure)
        return total

    def _forget(self, keys: Iterable[int]) -> None:
        """Of these the window says it, or they will never be begun."""
        for key in keys:
            charge = self._charges.pop(key)
            self._charged = self._charged.minus(charge.cost)
            account = self._accounts.get(charge.session)
            if account is not None:
                account.charged = account.charged.minus(charge.cost)

    def _changed(self) -> None:
        self.changes += 1
        self._divided = False

    def _divide(self) -> None:
        self._divided = True
        free, accounts = self.free(), list(self._accounts.values())
        if len(accounts) == 1:
            accounts[0].share = free
            return
        tokens = _shares(free.prefill_tokens, accounts, [each.demand.prefill_tokens for each in accounts])
        sequences = _shares(free.sequences, accounts, [each.demand.requests for each in accounts])
        blocks = _shares(free.kv_blocks, accounts, [each.demand.prefill_tokens for each in accounts])
        for account, *share in zip(accounts, tokens, sequences, blocks, strict=True):
            account.share = Room(*share)


def _shares(amount: int, accounts: list[_Account], demands: list[int]) -> list[int]:
    """Whole units by demand that add up to `amount`; what rounding leaves goes first to who demands."""
    weights = demands if any(demands) else [1] * len(demands)
    total, count = sum(weights), len(weights)
    shares = [int(amount * (EVEN_PART / count + (1 - EVEN_PART) * each / total)) for each in weights]
    order = sorted(range(count), key=lambda index: (weights[index] == 0, accounts[index].admitted, index))
    for index in order[: max(0, amount - sum(shares))]:
        shares[index] += 1
    return shares
