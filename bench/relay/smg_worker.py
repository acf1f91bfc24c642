"""What the real SMG drives: `vllm.grpc.engine` without an engine, in SMG's own environment.

PYTHON bench/relay/smg_worker.py --ids FILE --step-s S --tokens N: N tokens a message, after the first one.
Nothing of ours is imported: the environment has smg-grpc-proto and grpcio alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
from smg_grpc_proto import (  # type: ignore[import-not-found]  # of SMG's environment
    vllm_engine_pb2,
    vllm_engine_pb2_grpc,
)

CONTEXT = 8192


class Sequence:
    """One running request."""

    def __init__(self, tokens: int) -> None:
        self.index = self.sent = 0
        self.tokens = tokens
        self.news: asyncio.Queue[int] = asyncio.Queue()  # indices up to which ids are to be told


class Engine(vllm_engine_pb2_grpc.VllmEngineServicer):  # type: ignore[misc]
    """Every sequence gets its next id a step."""

    def __init__(self, model: str, ids: list[int], tokens: int) -> None:
        self._model = model
        self._ids = ids
        self._tokens = tokens
        self._running: set[Sequence] = set()

    async def Generate(self, request: Any, _: Any) -> AsyncIterator[Any]:
        """Chunks, then what ends the stream."""
        sequence = Sequence(request.sampling_params.max_tokens)
        prompt = len(request.tokenized.input_ids)
        self._running.add(sequence)
        try:
            while sequence.sent < sequence.tokens:
                upto = await sequence.news.get()
                if request.stream:
                    yield self._chunk(sequence, upto, prompt)
                sequence.sent = upto
            yield self._complete(sequence, prompt)
        finally:
            self._running.discard(sequence)

    async def HealthCheck(self, *_: Any) -> Any:
        return vllm_engine_pb2.HealthCheckResponse(healthy=True, message="ok")

    async def GetModelInfo(self, *_: Any) -> Any:
        return vllm_engine_pb2.GetModelInfoResponse(
            model_path=self._model,
            tokenizer_path=self._model,
            served_model_name="model",
            is_generation=True,
            max_context_length=CONTEXT,
            max_req_input_len=CONTEXT,
            vocab_size=49_152,
            model_type="llama",
            eos_token_ids=[2],
        )

    async def GetServerInfo(self, *_: Any) -> Any:
        return vllm_engine_pb2.GetServerInfoResponse(server_type="vllm-grpc", data_parallel_size=1)

    async def GetLoads(self, *_: Any) -> Any:
        return vllm_engine_pb2.GetLoadsResponse(version="mock", dp_rank_count=1)

    async def Abort(self, *_: Any) -> Any:
        return vllm_engine_pb2.AbortResponse()

    async def run(self, step_s: float) -> None:
        """Steps, for ever."""
        due_s = time.monotonic()
        while True:
            due_s = max(due_s + step_s, time.monotonic())
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            for each in list(self._running):
                self._advance(each)

    def _advance(self, sequence: Sequence) -> None:
        sequence.index += 1
        over = sequence.index == sequence.tokens
        if over or sequence.index == 1 or (sequence.index - 1) % self._tokens == 0:
            sequence.news.put_nowait(sequence.index)
        if over:
            self._running.discard(sequence)

    def _at(self, first: int, upto: int) -> list[int]:
        return [self._ids[index % len(self._ids)] for index in range(first, upto)]

    def _chunk(self, sequence: Sequence, upto: int, prompt: int) -> Any:
        chunk = vllm_engine_pb2.GenerateStreamChunk(
            token_ids=self._at(sequence.sent, upto), prompt_tokens=prompt, completion_tokens=upto
        )
        return vllm_engine_pb2.GenerateResponse(chunk=chunk)

    def _complete(self, sequence: Sequence, prompt: int) -> Any:
        complete = vllm_engine_pb2.GenerateComplete(
            output_ids=self._at(0, sequence.tokens),
            finish_reason="length",
            prompt_tokens=prompt,
            completion_tokens=sequence.tokens,
        )
        return vllm_engine_pb2.GenerateResponse(complete=complete)


async def _serve(given: argparse.Namespace) -> None:
    engine = Engine(given.model, json.loads(given.ids.read_text()), given.tokens)
    serving = grpc.aio.server(options=[("grpc.so_reuseport", 0), ("grpc.max_concurrent_streams", 10_000)])
    vllm_engine_pb2_grpc.add_VllmEngineServicer_to_server(engine, serving)
    port = serving.add_insecure_port("127.0.0.1:0")
    await serving.start()
    print("ready", port, flush=True)
    await engine.run(given.step_s)


def main() -> None:
    """Serve until ended."""
    flags = argparse.ArgumentParser(description="vllm.grpc.engine without an engine.")
    flags.add_argument("--model", required=True, help="directory with tokenizer.json")
    flags.add_argument("--ids", type=Path, required=True, help="JSON list of ids to answer with")
    flags.add_argument("--step-s", type=float, default=0.01)
    flags.add_argument("--tokens", type=int, default=1, help="a message")
    asyncio.run(_serve(flags.parse_args()))


if __name__ == "__main__":
    main()
