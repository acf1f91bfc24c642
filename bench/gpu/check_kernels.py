"""Checks of kernels: against fp32 arithmetic on the same inputs, fresh, with poisoned outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from types import ModuleType
from typing import NamedTuple

import torch

from bench.gpu.compare import CheckFailed, expect_close, expect_equal
from bench.gpu.paged import Heads, Paged
from bench.gpu.place import Place
from bench.gpu.sampling import WAYS, Drawn, drawn
from services.worker.engine.torch.cuda import reference
from services.worker.engine.torch.cuda.arguments import GrammarMasks, LogprobsOut

HEADS = (
    Heads(queries=4, keys=4, dim=64),
    Heads(queries=6, keys=2, dim=80),  # a group of 3
    Heads(queries=14, keys=2, dim=64),  # of 7
    Heads(queries=32, keys=8, dim=128),
    Heads(queries=10, keys=2, dim=96),
    Heads(queries=8, keys=1, dim=256),
)
DTYPES = (torch.float32, torch.bfloat16)
_BATCHES = {  # queries and contexts of the rows
    "decodes": ([1] * 5, [1, 63, 64, 65, 700]),
    "prompts": ([3, 64, 130], [3, 64, 130]),
    "chunks beside decodes": ([1, 50, 1, 0, 17], [400, 50 + 777, 9, 1, 17]),
}
Check = tuple[str, Callable[[], str]]


class Kernels(NamedTuple):
    """What is checked, and where."""

    place: Place
    module: ModuleType

    def checks(self, seed: int) -> Iterator[Check]:
        """By name; each raises CheckFailed, or says how close it was."""
        for dtype in DTYPES:
            name = str(dtype).removeprefix("torch.")
            yield f"add_norm, {name}", partial(self._add_norm, dtype, seed)
            yield f"gate, {name}", partial(self._gate, dtype, seed)
            for heads in HEADS[:: self.place.size(1, 4)]:
                shape = f"{heads.queries}/{heads.keys} heads of {heads.dim}, {name}"
                yield f"place, {shape}", partial(self._place, heads, dtype, seed)
                for batch, deterministic in product(_BATCHES, (False, True)):
                    fixed = ", deterministic" * deterministic
                    work = partial(self._attend, heads, dtype, seed, batch, deterministic=deterministic)
                    yield f"attention, {batch}, {shape}{fixed}", work
        yield "attention in a graph", partial(self._graph, seed)
        for way in WAYS:
            yield f"sampling, {way}", partial(self._sample, way, seed)
        yield "sampling, all ways in a batch", partial(self._mixed, seed)
        yield "sampling, not finite", partial(self._not_finite, seed)
        yield "grammar masks", partial(self._masks, seed)
        yield "log-probabilities", partial(self._logprobs, seed)

    def _random(self, *shape: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
        return self.place.random(*shape, dtype=dtype, seed=seed)

    def _add_norm(self, dtype: torch.dtype, seed: int) -> str:
        said = ""
        for tokens, width in ((1, 64), (37, 4096), (5, 5120)):
            hidden, delta = (self._random(tokens, width, dtype=dtype, seed=seed + i) for i in (0, 1))
            weight = self._random(width, dtype=dtype, seed=seed + 2)
            for given in (delta, None):
                mine, wide = hidden.clone(), hidden.float()
                out, wanted = torch.full_like(hidden, torch.nan), torch.empty_like(wide)
                self.module.add_norm(mine, given, weight, 1e-5, out)
                reference.add_norm(
                    wide, None if given is None else given.float(), weight.float(), 1e-5, wanted
                )
                said = expect_close("norm", out, wanted)
                expect_close("sum", mine, wide)
        return said

    def _gate(self, dtype: torch.dtype, seed: int) -> str:
        merged = self._random(33, 2 * 1408, dtype=dtype, seed=seed)
        out = torch.full((33, 1408), torch.nan, dtype=dtype, device=merged.device)
        wanted = torch.empty(33, 1408, device=merged.device)
        self.module.gate(merged, out)
        reference.gate(merged.float(), wanted)
        return expect_close("gate", out, wanted)

    def _place(self, heads: Heads, dtype: torch.dtype, seed: int) -> str:
        tokens = 19
        paged = Paged(self.place, heads, [tokens], [200], dtype, seed)
        merged = self._random(
            tokens, (heads.queries + 2 * heads.keys) * heads.dim, dtype=dtype, seed=seed + 1
        )
        norms = [self._random(heads.dim, dtype=dtype, seed=seed + i) for i in (2, 3)]
        angles = self._random(512, heads.dim // 2, dtype=torch.float32, seed=seed + 4)
        device = merged.device
        positions = torch.arange(100, 100 + tokens, dtype=torch.int32, device=device)
        places = torch.randperm(200, generator=torch.Generator().manual_seed(seed))[:tokens].int().to(device)
        said = ""
        for normed in (True, False):
            pools = paged.pool.clone(), paged.pool.float()
            queries = (
                torch.full_like(paged.query, torch.nan),
                torch.empty_like(paged.query, dtype=torch.float32),
            )
            for module, pool, query, wide in zip(
                (self.module, reference), pools, queries, (0, 1), strict=True
            ):
                inputs = [merged, *(norms if normed else (None, None))]
                if wide:
                    inputs = [None if each is None else each.float() for each in inputs]
                module.place(
                    inputs[0], inputs[1], inputs[2], 1e-5, angles.cos(), angles.sin(), positions, places,
                    pool, query, heads.queries, heads.keys,
                )  # fmt: skip
            said = expect_close("queries", *queries)
            expect_close("pool", *pools)
        return said

    def _attend(self, heads: Heads, dtype: torch.dtype, seed: int, batch: str, *, deterministic: bool) -> str:
        queries, contexts = _BATCHES[batch]
        contexts = [context + 8000 * (context == 700) * (not self.place.dry) for context in contexts]
        paged = Paged(self.place, heads, queries, contexts, dtype, seed)
        wide = paged.as_fp32()
        wanted = wide.attend(reference.attend, wide.workspace(reference))
        workspace = paged.workspace(self.module, deterministic=deterministic).fill_(torch.nan)
        out = paged.attend(self.module.attend, workspace, deterministic=deterministic)
        return expect_close("attention", out, wanted)

    def _graph(self, seed: int) -> str:
        """The batch is read when it runs: what was captured serves another one."""
        heads = Heads(queries=8, keys=2, dim=128)
        first = Paged(self.place, heads, [1] * 4, [300, 20, 64, 1], torch.bfloat16, seed)
        workspace = first.workspace(self.module)
        first.attend(self.module.attend, workspace)
        replay = self._captured(lambda: first.attend(self.module.attend, workspace))
        first.rows.contexts.copy_(torch.tensor([17, 19, 2, 60], dtype=torch.int32))
        first.query.normal_()
        first.out.fill_(torch.nan)
        replay()
        first.contexts = [17, 19, 2, 60]
        wide = first.as_fp32()
        return expect_close("a replay", first.out, wide.attend(reference.attend, wide.workspace(reference)))

    def _captured(self, work: Callable[[], object]) -> Callable[[], object]:
        if not self.place.on_card:
            return work
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        replay: Callable[[], object] = graph.replay
        return replay

    def _sample(self, name: str, seed: int) -> str:
        given = drawn(self.place, [WAYS[name]] * 7, self.place.size(32_003, 2003), seed)
        return self._same_ids(given)

    def _mixed(self, seed: int) -> str:
        ways = [way for _ in range(9) for way in WAYS.values()]
        return self._same_ids(drawn(self.place, ways, self.place.size(128_256, 2003), seed))

    def _same_ids(self, given: Drawn) -> str:
        """On the same logits the ids are equal, and so is what is kept of them."""
        copies = [_copy(given) for _ in range(2)]
        for each, module in zip(copies, (self.module, reference), strict=True):
            rows, vocab = each.logits.shape
            numbers = max(1, module.sampling_workspace(rows, vocab))
            each.run(module, torch.full((numbers,), torch.nan, device=each.logits.device))
        expect_equal("ids", copies[0].tokens.tolist(), copies[1].tokens.tolist())
        for part in ("last_token", "history"):
            expect_equal(part, getattr(copies[0].state, part), getattr(copies[1].state, part))
        return f"{len(given.logits)} ids equal"

    def _not_finite(self, seed: int) -> str:
        given = drawn(self.place, list(WAYS.values()), 5000, seed)
        given.logits[1, 77] = torch.nan
        given.logits[2] = -torch.inf
        said = self._same_ids(given)
        found = _copy(given)
        found.run(self.module, self._sampling_room(found))
        expect_equal("a row that is not finite", found.tokens.tolist()[2], -2)
        return said

    def _masks(self, seed: int) -> str:
        vocab, rows = 5003, 6
        given = drawn(self.place, [WAYS["temperature 1"]] * rows, vocab, seed)
        words = -(-vocab // 32)
        bits = torch.randint(-(1 << 31), 1 << 31, (2, words), generator=torch.Generator().manual_seed(seed))
        index = torch.tensor([0, -1, 1, 1, -1, 0], dtype=torch.int32, device=given.logits.device)
        masks = GrammarMasks(index, bits.int().to(given.logits.device))
        found = []
        for module in (self.module, reference):
            each = _copy(given)
            room = self._sampling_room(each)
            module.sample(each.logits, each.slots, each.indices, masks, each.state, each.tokens, room)
            found.append(each.tokens.tolist())
        expect_equal("ids under masks", *found)
        for row, which in enumerate(index.tolist()):
            token = found[0][row]
            if which >= 0 and not bits[which, token // 32].item() >> (token % 32) & 1:
                raise CheckFailed(f"row {row} chose {token}, which its mask forbids")
        return f"{rows} ids equal"

    def _logprobs(self, seed: int) -> str:
        rows, vocab, k = 5, self.place.size(128_256, 3001), 7
        given = drawn(self.place, [WAYS["greedy"]] * rows, vocab, seed)
        device = given.logits.device
        tokens = torch.tensor([0, vocab - 1, 5, 17, 1], dtype=torch.int32, device=device)
        wanted_rows = torch.tensor([4, 0, 2], dtype=torch.int32, device=device)
        outs = []
        for module in (self.module, reference):
            out = LogprobsOut(
                torch.full((3,), torch.nan, device=device),
                torch.full((3, k), torch.nan, device=device),
                torch.full((3, k), -9, dtype=torch.int32, device=device),
            )
            room = torch.full((max(1, module.logprobs_workspace(3, vocab, k)),), torch.nan, device=device)
            module.logprobs(given.logits, wanted_rows, tokens, out, room)
            outs.append(out)
        expect_equal("ids of the best", outs[0].top_ids.tolist(), outs[1].top_ids.tolist())
        expect_close("the best", outs[0].top, outs[1].top, 1e-5)
        return expect_close("the chosen", outs[0].chosen, outs[1].chosen, 1e-5)

    def _sampling_room(self, given: Drawn) -> torch.Tensor:
        numbers = max(1, self.module.sampling_workspace(*given.logits.shape))
        return torch.full((numbers,), torch.nan, device=given.logits.device)


def _copy(given: Drawn) -> Drawn:
    state = type(given.state)(*(part.clone() for part in given.state))
    return given._replace(state=state, tokens=given.tokens.clone(), logits=given.logits.clone())
