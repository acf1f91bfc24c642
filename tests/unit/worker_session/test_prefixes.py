"""The mirror of the engine's blocks estimates what the engine itself would find."""

from __future__ import annotations

from headrace.v1 import session_pb2 as pb
from hypothesis import given
from hypothesis import strategies as st

from services.worker.scheduler.request import Request
from services.worker.session.intake import to_ids
from services.worker.session.prefixes import Prefixes
from tests.support.drive import Drive
from tests.support.fake_runner import FakeRunner
from tests.support.session_engine import DESCRIPTION, SPEC

KEY, PUBLIC = b"k" * 32, b"p" * 32


def run(prompt: list[int], **keys: object) -> Prefixes:
    """The mirror after a real scheduler has served this prompt."""
    runner = FakeRunner(SPEC)
    drive = Drive(runner)
    request = Request(handle=1, prompt=to_ids(prompt), max_tokens=4, arrival_s=0.0, **keys)  # type: ignore[arg-type]
    prefixes = Prefixes(DESCRIPTION)
    drive.scheduler.add(request, 0.0)
    now = 0.0
    while drive.scheduler.has_work:
        now += 0.01
        step = drive.scheduler.plan(now)
        assert step is not None
        drive.scheduler.commit(step, runner.launch(step).result(), now, 0.01)
        prefixes.apply(drive.scheduler.take_events().kv)
    return prefixes


def submit(prompt: list[int], **keys: object) -> pb.Submit:
    return pb.Submit(prompt_ids=prompt, prompt_tokens=len(prompt), **keys)  # type: ignore[arg-type]


@given(st.lists(st.integers(0, 49), min_size=1, max_size=400))
def test_the_prompt_that_ran_is_found_but_for_its_last_token(prompt: list[int]) -> None:
    prefixes = run(prompt, kv_key=KEY)
    assert prefixes.cached_tokens(submit(prompt, kv_key=KEY)) == (len(prompt) - 1) // 64 * 64
    assert prefixes.cached_tokens(submit([*prompt, 1], kv_key=KEY)) == len(prompt) // 64 * 64


def test_another_key_finds_nothing() -> None:
    prompt = list(range(49)) * 6
    prefixes = run(prompt, kv_key=KEY)
    assert prefixes.cached_tokens(submit(prompt, kv_key=b"o" * 32)) == 0
    assert prefixes.cached_tokens(submit(prompt)) == 0


def test_a_public_prefix_is_found_by_all_and_what_follows_by_its_own_key() -> None:
    prompt = list(range(49)) * 6
    keys = {"public_kv_key": PUBLIC, "public_prefix_tokens": 128}
    prefixes = run(prompt, kv_key=KEY, **keys)
    assert prefixes.cached_tokens(submit(prompt, kv_key=KEY, **keys)) == 256
    assert prefixes.cached_tokens(submit(prompt, kv_key=b"o" * 32, **keys)) == 128


def test_an_empty_cache_has_a_snapshot_too() -> None:
    (piece,) = Prefixes(DESCRIPTION).snapshot()
    assert (piece.next_event_number, piece.digests, piece.last) == (1, b"", True)
