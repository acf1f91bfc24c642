"""Sequences that have a slot: how they come in, grow and leave. Who and when is the planner's business."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from itertools import chain

from services.worker.scheduler.blocks import BlockPool
from services.worker.scheduler.sequence import Sequence
from services.worker.scheduler.steady import SteadyDecodes


class Residents:
    """Owners of slots and, through the pool, of blocks."""

    def __init__(self, pool: BlockPool, block_tokens: int, max_seqs: int) -> None:
        self.prefilling: dict[int, Sequence] = {}  # by handle: more than the newest token is to compute
        self._decoding: dict[int, Sequence] = {}
        self.steady: SteadyDecodes | None = None
        """Of those that decode; what it knows is not in them."""
        self.promised = 0  # blocks that they will probably need beyond those they have
        self._entered: list[Sequence] = []  # the runner has not been told yet
        self._grown: dict[Sequence, None] = {}  # a set: the runner has not been told of all their blocks
        self._constrained = 0  # that have grammars
        self._pool = pool
        self._block_tokens = block_tokens
        self._free_slots = list(range(max_seqs - 1, -1, -1))

    def __len__(self) -> int:
        return len(self.prefilling) + len(self._decoding)

    def __iter__(self) -> Iterator[Sequence]:
        return chain(self.prefilling.values(), self.decoding.values())

    @property
    def decoding(self) -> dict[int, Sequence]:
        """By handle: only the newest token is to compute."""
        self.dissolve()
        return self._decoding

    def dissolve(self) -> None:
        """What is known of sequences is in them when this returns."""
        if self.steady is not None:
            steady, self.steady = self.steady, None
            steady.dissolve()

    @property
    def free_slots(self) -> int:
        return len(self._free_slots)

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold so many tokens."""
        return -(-tokens // self._block_tokens)

    def admit(self, sequence: Sequence, length: int) -> None:
        """Give a slot, and the blocks that hold its beginning already. There must be a free slot.

        length: tokens that it will probably have in the end.
        """
        found = self._pool.find(sequence.reusable_links())
        self._pool.hold(found)
        sequence.move_to(self._free_slots.pop(), found, len(found) * self._block_tokens)
        self._promise(sequence, self.blocks_for(length) - len(found))
        self.prefilling[sequence.handle] = sequence
        self._entered.append(sequence)
        self._grown[sequence] = None
        self._constrained += sequence.constrained

    def grow(self, sequence: Sequence, tokens: int) -> bool:
        """Make room for `tokens` in all; False when the pool has too few blocks, and nothing is taken."""
        if tokens <= sequence.capacity:
            return True
        blocks = self._pool.take(self.blocks_for(tokens) - len(sequence.blocks))
        if blocks is None:
            return False
        sequence.blocks.extend(blocks)
        self._grown[sequence] = None
        sequence.capacity = len(sequence.blocks) * self._block_tokens
        self._promise(sequence, sequence.promised - len(blocks))
        return True

    def seal(self, sequence: Sequence) -> None:
        """Make blocks findable that completed steps have filled."""
        while sequence.full_at <= sequence.settled:
            index = sequence.sealed
            if sequence.chain.covers(index):
                self._pool.seal(sequence.blocks[index], sequence.chain.link(index, sequence.ids))
            sequence.sealed += 1
            sequence.full_at += self._block_tokens

    def leave(self, sequence: Sequence) -> None:
        """Take slot and blocks back; blocks are free when the last launched step with it completes."""
        assert sequence.slot is not None
        self.dissolve()
        self._free_slots.append(sequence.slot)
        self.prefilling.pop(sequence.handle, None)
        self._decoding.pop(sequence.handle, None)
        if sequence in self._entered:
            self._entered.remove(sequence)
        self._grown.pop(sequence, None)
        self._constrained -= sequence.constrained
        self._promise(sequence, 0)
        self._pool.release(sequence.move_out(), sequence.last_step)

    def entering(self, rows: Container[Sequence], step: int) -> list[Sequence]:
        """Those of a step's sequences that are new in their slots; asked once per step."""
        entering = [sequence for sequence in self._entered if sequence in rows]
        self._entered = [sequence for sequence in self._entered if sequence not in rows]
        for sequence in entering:
            sequence.entered_step = step
        return entering

    @property
    def constrained(self) -> bool:
        """Whether any has a grammar."""
        return self._constrained > 0

    def announce(self, rows: Container[Sequence]) -> dict[Sequence, list[int]]:
        """Blocks of a step's sequences that the runner has not been told of; it is told with that step."""
        told = {}
        for sequence in [each for each in self._grown if each in rows]:
            del self._grown[sequence]
            told[sequence] = sequence.blocks[sequence.announced :]
            sequence.announced = len(sequence.blocks)
        return told

    def launched_decodes(self, sequences: Iterable[Sequence], step: int, now: float) -> None:
        """A step with the newest token of each is on its way, and chooses their next."""
        for sequence in sequences:
            sequence.computed += 1
            sequence.pending += 1
            sequence.last_step = step
            sequence.last_launch_s = now
        if self._constrained:
            for sequence in sequences:
                sequence.masked = sequence.masked and not sequence.constrained

    def launched_chunk(self, sequence: Sequence, take: int, step: int, now: float) -> None:
        """A step with `take` tokens of it is on its way; after the last one it decodes."""
        if sequence.missing == take:
            del self.prefilling[sequence.handle]
            self._decoding[sequence.handle] = sequence
            sequence.pending += 1
            sequence.masked = not sequence.constrained
        sequence.computed += take
        sequence.last_step = step
        sequence.last_launch_s = now

    def _promise(self, sequence: Sequence, blocks: int) -> None:
        self.promised += max(0, blocks) - sequence.promised
        sequence.promised = max(0, blocks)
