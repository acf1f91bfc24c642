"""Sequences that have a slot: how they come in, grow and leave. Who and when is the planner's business."""

from __future__ import annotations

from collections.abc import Container, Iterator

from services.worker.scheduler.blocks import BlockPool
from services.worker.scheduler.sequence import Sequence


class Residents:
    """Owners of slots and, through the pool, of blocks."""

    def __init__(self, pool: BlockPool, block_tokens: int, max_seqs: int) -> None:
        self.prefilling: dict[int, Sequence] = {}  # by handle: more than the newest token is to compute
        self.decoding: dict[int, Sequence] = {}
        self._entered: list[Sequence] = []  # the runner has not been told yet
        self._pool = pool
        self._block_tokens = block_tokens
        self._free_slots = list(range(max_seqs - 1, -1, -1))

    def __len__(self) -> int:
        return len(self.prefilling) + len(self.decoding)

    def __iter__(self) -> Iterator[Sequence]:
        yield from self.prefilling.values()
        yield from self.decoding.values()

    @property
    def free_slots(self) -> int:
        return len(self._free_slots)

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold so many tokens."""
        return -(-tokens // self._block_tokens)

    def admit(self, sequence: Sequence) -> None:
        """Give a slot, and the blocks that hold its beginning already. There must be a free slot."""
        found = self._pool.find(sequence.reusable_links())
        self._pool.hold(found)
        sequence.move_to(self._free_slots.pop(), found, len(found) * self._block_tokens)
        self.prefilling[sequence.handle] = sequence
        self._entered.append(sequence)

    def grow(self, sequence: Sequence, tokens: int) -> bool:
        """Make room for `tokens` in all; False when the pool has too few blocks, and nothing is taken."""
        if tokens <= sequence.capacity:
            return True
        blocks = self._pool.take(self.blocks_for(tokens) - len(sequence.blocks))
        if blocks is None:
            return False
        sequence.blocks.extend(blocks)
        sequence.capacity = len(sequence.blocks) * self._block_tokens
        return True

    def seal(self, sequence: Sequence) -> None:
        """Make blocks findable that completed steps have filled."""
        while (sequence.sealed + 1) * self._block_tokens <= sequence.settled:
            index = sequence.sealed
            if sequence.chain.covers(index):
                self._pool.seal(sequence.blocks[index], sequence.chain.link(index, sequence.ids))
            sequence.sealed += 1

    def leave(self, sequence: Sequence) -> None:
        """Take slot and blocks back; blocks are free when the last launched step with it completes."""
        assert sequence.slot is not None
        self._free_slots.append(sequence.slot)
        self.prefilling.pop(sequence.handle, None)
        self.decoding.pop(sequence.handle, None)
        if sequence in self._entered:
            self._entered.remove(sequence)
        self._pool.release(sequence.move_out(), sequence.last_step)

    def entering(self, rows: Container[Sequence]) -> list[Sequence]:
        """Those of a step's sequences that are new in their slots; asked once per step."""
        entering = [sequence for sequence in self._entered if sequence in rows]
        self._entered = [sequence for sequence in self._entered if sequence not in rows]
        return entering

    def launched(self, sequence: Sequence, take: int, step: int, now: float) -> None:
        """A step with `take` tokens of it is on its way."""
        sequence.last_step = step
        sequence.last_launch_s = now
        sequence.announced = len(sequence.blocks)
        samples = sequence.missing == take
        sequence.computed += take
        if samples:
            sequence.pending += 1
            sequence.masked = not sequence.constrained
            if sequence.handle in self.prefilling:
                del self.prefilling[sequence.handle]
                self.decoding[sequence.handle] = sequence
