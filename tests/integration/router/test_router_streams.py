"""A client's stream through a real router, from a scripted worker."""

from __future__ import annotations

from pathlib import Path

from headrace.v1 import router_pb2, types_pb2

from tests.support.router_house import open_house, read
from tests.support.scripted_worker import all_at_once

PROMPT = "The router sends"
ANSWER = " each request to the worker that will answer it first."


async def test_a_stream_carries_the_text_and_ids_and_one_end(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        ids = house.tokenizer.ids(ANSWER)
        await house.worker(script=all_at_once(ids)).connect()
        answer = await read(house.stub.Generate(router_pb2.GenerateRequest(text=PROMPT)))
        assert answer.error is None
        assert (answer.text, answer.ids) == (ANSWER, ids)
        assert answer.finished is not None
        assert answer.finished.finish_reason == types_pb2.FINISH_REASON_LENGTH
