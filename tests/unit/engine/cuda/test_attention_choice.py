"""Attention that stands in for ours: right numbers first, then the clock; ours stays whatever others do."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from services.worker.engine.errors import EngineLoadError
from services.worker.engine.torch.cuda import reference
from services.worker.engine.torch.cuda.attention import (
    Alternative,
    Attention,
    AttentionShape,
    HostRows,
    OwnAttention,
)
from services.worker.engine.torch.cuda.attention import choice as attention_choice
from services.worker.engine.torch.cuda.attention.choice import (
    KINDS,
    Left,
    available,
    choose_attention,
)
from services.worker.engine.torch.cuda.attention.others import (
    FlashInferAttention,
    GatheredAttention,
    Unavailable,
    VarlenAttention,
    pages_of,
)
from services.worker.engine.torch.cuda.attention.trial import Trial

SHAPE = AttentionShape(
    heads=6, kv_heads=2, head_dim=16, block_size=64, width=4, dtype=torch.float32, device=torch.device("cpu")
)
LONG = SHAPE._replace(heads=2, width=1024)
ROWS = ((1, 70), (5, 130), (1, 64), (33, 33), (2, 65))


class Fake(OwnAttention):
    """The reference under another name, or something that goes wrong."""

    def __init__(
        self, name: str, *, captures: bool = True, spoil: Callable[[torch.Tensor], None] | None = None
    ):
        super().__init__(reference)
        self.name, self.captures, self.spoil = name, captures, spoil
        self.plans: list[HostRows] = []
        self.launches = 0

    def plan(self, rows: HostRows, tables: torch.Tensor) -> None:
        self.plans.append(rows)

    def __call__(self, *arguments: Any, **keywords: Any) -> None:
        assert self.captures or self.plans, "planned before it is launched"
        self.launches += 1
        super().__call__(*arguments, **keywords)
        if self.spoil is not None:
            self.spoil(arguments[4])


def fails(_out: torch.Tensor) -> None:
    raise RuntimeError("CUDA error: no kernel image\nsecond line")


class Clock:
    """Says how long a launch took by who was launched, without launching."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = seconds
        self.asked: list[tuple[str, float]] = []

    def __call__(self, launch: Callable[[], None], seconds: float) -> float:
        candidate = launch.args[0]  # type: ignore[attr-defined]
        self.asked.append((candidate.name, seconds))
        return self.seconds[candidate.name]


def of(*found: Alternative | Left) -> Callable[[], Iterator[Alternative | Left]]:
    return lambda: iter(found)


def names(attention: Attention) -> tuple[str, str, str]:
    return attention.decode.name, attention.mixed.name, attention.eager.name


class TestChoice:
    def test_the_quickest_of_each_kind_is_chosen_and_only_captured_ones_for_graphs(self) -> None:
        eager, any_step = Fake("eager", captures=False), Fake("any")
        clock = Clock({"triton": 1.0, "eager": 0.1, "any": 0.5})
        choice = choose_attention(LONG, reference, candidates=of(eager, any_step), timer=clock)
        assert names(choice.attention) == ("any", "any", "eager")
        assert choice.attention.captures
        assert choice.attention.name == "decode any, mixed any, eager eager"
        cases = [len(kind.cases) for kind in KINDS]
        assert choice.times["decode"] == {"triton": 1e3 * cases[0], "any": 500 * cases[0]}
        assert "eager eager (triton 2000.000 ms, eager 200.000 ms, any 1000.000 ms)" in str(choice)

    @pytest.mark.parametrize(("theirs", "chosen"), [(1.0, "triton"), (0.96, "triton"), (0.94, "theirs")])
    def test_ours_stays_unless_another_is_clearly_quicker(self, theirs: float, chosen: str) -> None:
        clock = Clock({"triton": 1.0, "theirs": theirs})
        choice = choose_attention(LONG, reference, candidates=of(Fake("theirs")), timer=clock)
        assert names(choice.attention) == (chosen,) * 3
        assert choice.attention.name == chosen

    def test_timings_share_a_second(self) -> None:
        clock = Clock({"triton": 1.0, "theirs": 1.0})
        choose_attention(LONG, reference, candidates=of(Fake("theirs")), timer=clock)
        assert sum(seconds for _, seconds in clock.asked) == pytest.approx(attention_choice.SECONDS)

    def test_cases_beyond_the_context_are_left_out(self) -> None:
        clock = Clock({"triton": 1.0, "theirs": 0.1})
        choice = choose_attention(SHAPE, reference, candidates=of(Fake("theirs")), timer=clock)
        assert not clock.asked
        assert choice.attention.name == "triton"

    @pytest.mark.parametrize(
        ("spoil", "reason"),
        [
            (lambda out: out.add_(0.01), "wrong by 0.01, 0.0001 is allowed"),
            (lambda out: out[3].fill_(math.nan), "wrong by nan, 0.0001 is allowed"),
            (fails, "CUDA error: no kernel image"),
        ],
    )
    def test_one_that_is_wrong_or_raises_is_left_out_and_said_so(
        self, spoil: Callable[[torch.Tensor], None], reason: str
    ) -> None:
        clock = Clock({"triton": 1.0, "bad": 0.0})
        choice = choose_attention(LONG, reference, candidates=of(Fake("bad", spoil=spoil)), timer=clock)
        assert choice.attention.name == "triton"
        assert choice.left == (Left("bad", reason),)
        assert f"without bad: {reason}" in str(choice)
        assert not clock.asked, "alone, ours needs no clock"

    def test_one_that_writes_nothing_is_wrong(self) -> None:
        lazy = SimpleNamespace(attend=lambda *_, **__: None)
        candidate = OwnAttention(lazy)
        candidate.name = "lazy"
        choice = choose_attention(SHAPE, reference, candidates=of(candidate), timer=Clock({}))
        assert [each.name for each in choice.left] == ["lazy"]

    def test_without_ours_the_others_serve_and_what_gathers_comes_last(self) -> None:
        broken = broken_kernels()
        gathered, other = GatheredAttention(LONG), Fake("other")
        choice = choose_attention(LONG, broken, candidates=of(gathered, other), timer=Clock({}))
        assert choice.attention.name == "other"
        choice = choose_attention(LONG, broken, candidates=of(gathered), timer=Clock({}))
        assert choice.attention.name == "sdpa"
        assert not choice.attention.captures

    def test_nothing_that_works_is_refused_with_the_reasons(self) -> None:
        with pytest.raises(EngineLoadError, match="no attention works on cpu: triton too large; other odd"):
            choose_attention(SHAPE, broken_kernels(), candidates=of(Left("other", "odd")), timer=Clock({}))

    def test_deterministic_steps_get_ours_without_a_trial(self) -> None:
        other = Fake("other")
        choice = choose_attention(SHAPE, reference, deterministic=True, candidates=of(other))
        assert choice.attention.name == "triton"
        assert not other.launches
        assert str(choice) == "attention: triton"

    @pytest.mark.parametrize("wanted", ["flashinfer", "varlen", "sdpa"])
    def test_others_are_refused_where_ids_must_be_deterministic(self, wanted: Any) -> None:
        with pytest.raises(EngineLoadError, match=f"attention {wanted} is not deterministic"):
            choose_attention(SHAPE, reference, wanted, deterministic=True)

    def test_a_wish_is_no_matter_of_time(self) -> None:
        eager, any_step = Fake("flashinfer", captures=False), Fake("varlen")
        for wanted, chosen in (
            ("triton", ("triton",) * 3),
            ("varlen", ("varlen",) * 3),
            ("flashinfer", ("triton", "triton", "flashinfer")),
        ):
            found = of(eager, any_step)
            choice = choose_attention(SHAPE, reference, wanted, candidates=found, timer=Clock({}))  # type: ignore[arg-type]
            assert names(choice.attention) == chosen

    def test_a_wish_that_cannot_be_had_is_refused_with_its_reason(self) -> None:
        with pytest.raises(EngineLoadError, match="attention varlen is not to be had: wrong by"):
            choose_attention(
                SHAPE, reference, "varlen", candidates=of(Fake("varlen", spoil=lambda out: out.zero_()))
            )
        with pytest.raises(EngineLoadError, match="attention flashinfer is not to be had: not installed"):
            choose_attention(SHAPE, reference, "flashinfer")


def broken_kernels() -> Any:
    """Kernels that this device cannot run."""

    def attend(*_: object, **__: object) -> None:
        raise RuntimeError("too large")

    return SimpleNamespace(attend=attend, attention_workspace=lambda *_, **__: 0)


class TestKindsOfSteps:
    """Who is asked: by the queries of a row, and whether a graph holds the step."""

    @pytest.fixture
    def attention(self) -> Attention:
        return Attention(Fake("decode"), Fake("mixed"), Fake("eager", captures=False))

    @staticmethod
    def launched(attention: Attention) -> str:
        counts = {each.name: each.launches for each in (attention.decode, attention.mixed, attention.eager)}  # type: ignore[attr-defined]
        return ", ".join(name for name, count in counts.items() if count)

    def test_rows_of_one_query_are_decodes(self, attention: Attention) -> None:
        Trial(SHAPE, reference, ((1, 70), (1, 64))).launch(attention)
        assert self.launched(attention) == "decode"

    def test_a_step_that_is_not_planned_is_one_of_a_graph(self, attention: Attention) -> None:
        Trial(SHAPE, reference, ROWS).launch(attention)
        assert self.launched(attention) == "mixed"

    def test_a_planned_step_is_eager_and_the_next_one_is_not(self, attention: Attention) -> None:
        trial = Trial(SHAPE, reference, ROWS)
        with attention.planned(trial.host, trial.tables):
            trial.launch(attention)
        assert attention.eager.plans == [trial.host]  # type: ignore[attr-defined]
        assert self.launched(attention) == "eager"
        trial.launch(attention)
        assert self.launched(attention) == "mixed, eager"

    def test_a_step_that_fails_is_over(self, attention: Attention) -> None:
        trial = Trial(SHAPE, reference, ROWS)
        with pytest.raises(RuntimeError), attention.planned(trial.host, trial.tables):
            raise RuntimeError
        trial.launch(attention)
        assert self.launched(attention) == "mixed"


def expected(shape: AttentionShape, trial: Trial) -> torch.Tensor:
    out = torch.full_like(trial.out, math.nan)
    reference.attend(
        trial.query, trial.pool, trial.rows, trial.tables, out, trial.workspace,
        scale=shape.scale, block_size=shape.block_size,
    )  # fmt: skip
    return out


class TestGathered:
    @pytest.mark.parametrize("most", [1 << 26, 700, 1])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_it_is_right_whatever_the_masks_may_take(
        self, dtype: torch.dtype, most: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("services.worker.engine.torch.cuda.attention.others._MOST_HIDDEN", most)
        shape = SHAPE._replace(dtype=dtype)
        trial, gathered = Trial(shape, reference, ROWS), GatheredAttention(shape)
        trial.out.fill_(math.nan)
        gathered.plan(trial.host, trial.tables)
        trial.launch(gathered)
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(trial.out, expected(shape, trial), rtol=tolerance, atol=tolerance)


def paged(
    query: torch.Tensor, pool: tuple[torch.Tensor, torch.Tensor], rows: list[Any], out: torch.Tensor
) -> None:
    """Attention of rows (start, end, pages, context), as the libraries' documentation describes it."""
    group = query.shape[1] // pool[0].shape[2]
    for start, end, pages, context in rows:
        keys, values = (
            part[pages.long()].flatten(0, 1)[:context].repeat_interleave(group, 1).transpose(0, 1)
            for part in pool
        )
        mask = torch.ones(end - start, context, dtype=torch.bool).tril(context - (end - start))
        attended = torch.nn.functional.scaled_dot_product_attention(
            query[start:end].transpose(0, 1), keys, values, attn_mask=mask
        )
        out[start:end] = attended.transpose(0, 1)


class TestVarlen:
    @staticmethod
    def module(**replaced: Any) -> ModuleType:
        """torch.nn.attention.varlen on a CPU."""

        def varlen_attn_out(
            out: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
            cu_seq_q: torch.Tensor, cu_seq_k: None, max_q: int, max_k: int, *, scale: float | None = None,
            window_size: tuple[int, int] = (-1, -1), enable_gqa: bool = False,
            seqused_k: torch.Tensor | None = None, block_table: torch.Tensor | None = None,
            num_splits: int | None = None,
        ) -> torch.Tensor:  # fmt: skip
            assert window_size == (-1, 0), "causal"
            assert enable_gqa == (query.shape[1] != key.shape[2])
            assert scale == pytest.approx(query.shape[2] ** -0.5)
            assert seqused_k is not None
            assert block_table is not None
            assert block_table.dtype == cu_seq_q.dtype == seqused_k.dtype == torch.int32
            lengths = cu_seq_q.diff()
            assert max_q == int(lengths.max())
            assert max_k >= int(seqused_k.max())
            starts = cu_seq_q.tolist()
            rows = zip(starts[:-1], starts[1:], block_table, seqused_k.tolist(), strict=True)
            cut = [
                (start, end, pages[: -(-context // key.shape[1])], context)
                for start, end, pages, context in rows
            ]
            paged(query, (key, value), cut, out)
            return out

        module = ModuleType("varlen")
        vars(module).update({"varlen_attn_out": varlen_attn_out} | replaced)
        return module

    def test_it_is_called_as_it_documents(self) -> None:
        trial = Trial(SHAPE, reference, ROWS)
        trial.launch(VarlenAttention(self.module()))
        torch.testing.assert_close(trial.out, expected(SHAPE, trial), rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("function", [None, lambda out, query, key, value, cu_seq_q: None])
    def test_one_without_a_block_table_is_not_available(self, function: Any) -> None:
        with pytest.raises(Unavailable, match="takes no block table"):
            VarlenAttention(self.module(varlen_attn_out=function))

    def test_the_signature_of_this_torch_is_understood(self) -> None:
        """Whether it has a block table is asked, not its version; on a CPU the call itself is refused."""
        varlen = importlib.import_module("torch.nn.attention.varlen")
        if not hasattr(varlen, "varlen_attn_out"):
            pytest.skip("an older torch")
        assert VarlenAttention(varlen).captures


class Event:
    """Keeps the order of what happens to it."""

    def __init__(self) -> None:
        self.story: list[str] = []

    def record(self) -> None:
        self.story.append("record")

    def synchronize(self) -> None:
        self.story.append("wait")


class Wrapper:
    """flashinfer.BatchPrefillWithPagedKVCacheWrapper on a CPU, as version 0.7.2 documents it."""

    def __init__(self, space: torch.Tensor, kv_layout: str = "NHD", *, backend: str = "auto") -> None:
        self.backend = backend
        assert kv_layout == "NHD"
        assert space.dtype == torch.uint8
        self.rows: list[tuple[int, int, torch.Tensor, int]] = []

    def plan(
        self, qo_indptr: torch.Tensor, paged_kv_indptr: torch.Tensor, paged_kv_indices: torch.Tensor,
        paged_kv_last_page_len: torch.Tensor, num_qo_heads: int, num_kv_heads: int, head_dim_qk: int,
        page_size: int, *, causal: bool = False, sm_scale: float | None = None,
        q_data_type: torch.dtype = torch.float16, kv_data_type: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        indices = (qo_indptr, paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len)
        assert all(each.dtype == torch.int32 for each in indices)
        assert causal
        assert (q_data_type, kv_data_type) == (SHAPE.dtype, SHAPE.dtype)
        assert sm_scale == pytest.approx(head_dim_qk**-0.5)
        assert (num_qo_heads, num_kv_heads) == (SHAPE.heads, SHAPE.kv_heads)
        starts, pages = qo_indptr.tolist(), paged_kv_indptr.tolist()
        self.rows = [
            (starts[row], starts[row + 1], paged_kv_indices[pages[row] : pages[row + 1]],
             (pages[row + 1] - pages[row] - 1) * page_size + last)
            for row, last in enumerate(paged_kv_last_page_len.tolist())
        ]  # fmt: skip

    def run(
        self, q: torch.Tensor, paged_kv_cache: tuple[torch.Tensor, torch.Tensor], *, out: torch.Tensor
    ) -> None:
        paged(q, paged_kv_cache, self.rows, out)


class TestFlashInfer:
    @pytest.fixture
    def flashinfer(self, monkeypatch: pytest.MonkeyPatch) -> FlashInferAttention:
        monkeypatch.setattr("services.worker.engine.torch.cuda.attention.others._FLASHINFER_BYTES", 64)
        return FlashInferAttention(
            SimpleNamespace(BatchPrefillWithPagedKVCacheWrapper=Wrapper), SHAPE, event=Event
        )

    def test_it_is_planned_and_run_as_it_documents(self, flashinfer: FlashInferAttention) -> None:
        for rows in (ROWS, ((64, 64),), ((3, 65), (1, 1)), ((1, 256), (100, 256))):
            trial = Trial(SHAPE, reference, rows)
            flashinfer.plan(trial.host, trial.tables)
            trial.launch(flashinfer)
            torch.testing.assert_close(trial.out, expected(SHAPE, trial), rtol=1e-5, atol=1e-5)

    def test_a_plan_waits_until_its_memory_was_copied_and_only_then_is_made_anew(
        self, flashinfer: FlashInferAttention
    ) -> None:
        trial = Trial(SHAPE, reference, ROWS)
        for _ in range(5):
            flashinfer.plan(trial.host, trial.tables)
        stories = sorted(event.story for _, event in flashinfer._plans)
        assert stories == [["wait", "record"] * 2, ["wait", "record"] * 3]

    def test_auto_does_not_wait_for_its_compiler(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
    ) -> None:
        jit: Any = ModuleType("flashinfer.jit")
        jit.get_batch_prefill_uri = lambda backend, *_: "batch" + "_sm90" * (backend == "fa3")
        jit.env = SimpleNamespace(FLASHINFER_JIT_DIR=tmp_path, FLASHINFER_AOT_DIR=tmp_path / "none")
        module: Any = ModuleType("flashinfer")
        module.BatchPrefillWithPagedKVCacheWrapper = Wrapper
        monkeypatch.setitem(sys.modules, "flashinfer", module)
        monkeypatch.setitem(sys.modules, "flashinfer.jit", jit)
        monkeypatch.setattr("torch.cuda.Event", Event)

        def backend(**options: bool) -> str:
            found = next(available(SHAPE, **options))
            return found._plans[0][0].backend if isinstance(found, FlashInferAttention) else found.reason  # type: ignore[union-attr]

        assert "not compiled yet" in backend()
        assert backend(compile_too=True) == "auto"
        for name in ("batch_sm90_full", "batch_full"):
            assert "not compiled yet" in backend(), "kernels for Hopper do not serve others"
            (tmp_path / name).mkdir()
            (tmp_path / name / "kernels.so").touch()
        assert backend() == "fa2"

    def test_one_that_is_not_installed_is_said_to_be_missing(self) -> None:
        found = {each.name: each for each in available(SHAPE)}
        assert found["flashinfer"] == Left("flashinfer", "not installed")
        assert isinstance(found["sdpa"], GatheredAttention)


def test_pages_are_those_of_the_rows_tables() -> None:
    rows = HostRows(
        np.array([3, 0, 1], np.int32), np.array([0, 1, 2, 3], np.int32), np.array([64, 65, 1], np.int32)
    )
    pages = pages_of(rows, 64, 5)
    assert pages.starts.tolist() == [0, 1, 3, 4]
    assert pages.cells.tolist() == [15, 0, 1, 5]
    assert pages.last.tolist() == [64, 1, 1]
