"""A runner without a model that notices every mistake of a scheduler.

Its KV memory holds token ids instead of tensors. The next token is a digest of all ids that a row can read
through its block table, so a lost, doubled or overwritten token changes the output; `expected_output` says
what it must be.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np

from services.worker.scheduler.request import Request
from services.worker.scheduler.step import (
    LAST_SAMPLED,
    NOT_SAMPLED,
    Capabilities,
    KVSpec,
    Sampled,
    Step,
)

VOCAB = 50
EOS = 7


def next_token(ids: list[int]) -> int:
    """The fake model: any change of any id changes it."""
    digest = blake2b(np.array(ids, np.int32).tobytes(), digest_size=4).digest()
    return int.from_bytes(digest, "little") % VOCAB


def expected_output(request: Request, max_len: int) -> list[int]:
    """All output ids of a request that runs to its end, those delivered before included."""
    ids = [*request.prompt.tolist(), *request.delivered.tolist()]
    prompt = len(request.prompt)
    limit = min(request.max_tokens, max_len - prompt)
    stops = {EOS, *request.sampling.stop_token_ids}
    while len(ids) - prompt < limit and not (ids[prompt:] and ids[-1] in stops):
        ids.append(next_token(ids))
    return ids[prompt:]


class FakePending:
    def __init__(self, sampled: Sampled) -> None:
        self._sampled = sampled

    def result(self) -> Sampled:
        return self._sampled


class FakeRunner:
    """Implements `Runner`; launch order and array contracts are asserted."""

    def __init__(self, spec: KVSpec, capabilities: Capabilities | None = None) -> None:
        self.spec = spec
        self.capabilities = capabilities or Capabilities(deterministic=True)
        self.steps: list[Step] = []
        self._memory = np.full((spec.num_blocks, spec.block_size), -1, np.int64)
        self._tables: dict[int, list[int]] = {}
        self._last: dict[int, int] = {}

    def launch(self, step: Step) -> FakePending:
        assert step.number == len(self.steps) + 1
        assert len(set(step.slots.tolist())) == len(step.slots) > 0
        assert step.query_lens.min() > 0
        self.steps.append(step)
        for init in step.inits:
            self._tables[init.slot] = []
            self._last.pop(init.slot, None)
        return FakePending(self._compute(step))

    def improve(self) -> bool:
        """Nothing to do."""
        return False

    def close(self) -> None:
        self._tables.clear()

    def _compute(self, step: Step) -> Sampled:
        ends = np.cumsum(step.query_lens)
        written: list[tuple[int, int]] = []
        inputs = []
        for row, slot in enumerate(step.slots.tolist()):
            table = self._tables[slot]
            table.extend(step.block_ids[step.block_offsets[row] : step.block_offsets[row + 1]].tolist())
            inputs.append(self._inputs(slot, step.tokens[ends[row] - step.query_lens[row] : ends[row]]))
            written += self._write(table, int(step.context_lens[row]), inputs[-1])
        assert len(set(written)) == len(written), "two rows write to one place"
        return Sampled(np.array([self._choose(step, row) for row in range(len(step.slots))], np.int32))

    def _inputs(self, slot: int, tokens: np.ndarray) -> list[int]:
        ids = tokens.tolist()
        assert LAST_SAMPLED not in ids[:-1]
        return [*ids[:-1], self._last[slot]] if ids[-1] == LAST_SAMPLED else ids

    def _write(self, table: list[int], start: int, ids: list[int]) -> list[tuple[int, int]]:
        places = [divmod(start + index, self.spec.block_size) for index in range(len(ids))]
        written = [(table[block], offset) for block, offset in places]
        for place, token in zip(written, ids, strict=True):
            self._memory[place] = token
        return written

    def _choose(self, step: Step, row: int) -> int:
        if not step.samples[row]:
            return NOT_SAMPLED
        slot = int(step.slots[row])
        length = int(step.context_lens[row] + step.query_lens[row])
        assert length <= self.spec.max_len
        ids = self._memory[self._tables[slot]].reshape(-1)[:length]
        assert (ids >= 0).all(), "reads memory that nobody wrote"
        self._last[slot] = next_token(ids.tolist())
        return self._last[slot]
