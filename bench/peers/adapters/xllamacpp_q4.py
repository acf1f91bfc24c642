"""llama.cpp: the server that `xllamacpp` runs in process, over its own HTTP port as that alone gives ids.

The wheel uses AVX2 and no AVX-512, which building it from source would add.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from urllib.parse import urlsplit

import xllamacpp

from bench.peers.adapters.loop import Answer, Config, Job, Run, serve

SLOT_TOKENS = 256  # context of one stream
REQUEST_S = 300.0


@contextmanager
def start(config: Config) -> Iterator[Run]:
    """A server on a free port of loopback, with a slot a stream and without prompt caching."""
    parameters = xllamacpp.CommonParams()
    parameters.model.path = config.model
    parameters.n_parallel = config.streams
    parameters.n_ctx = config.streams * SLOT_TOKENS
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = config.threads
    parameters.cache_prompt = False
    parameters.port = 0
    server = xllamacpp.Server(parameters)
    address = urlsplit(server.listening_address).netloc
    yield lambda job: _run(address, job)


def _run(address: str, job: Job) -> list[Answer]:
    with ThreadPoolExecutor(job.streams) as threads:
        return list(threads.map(lambda prompt: _ask(address, prompt, job.output_tokens), job.prompts))


def _ask(address: str, prompt: list[int], output_tokens: int) -> Answer:
    answer = Answer()
    connection = http.client.HTTPConnection(address, timeout=REQUEST_S)
    try:
        connection.request("POST", "/completion", json.dumps(_body(prompt, output_tokens)))
        reply = connection.getresponse()
        if reply.status != 200:
            raise RuntimeError(f"HTTP {reply.status}: {reply.read(200)!r}")
        for line in reply:
            answer.arrived(_ids(line))
    finally:
        connection.close()
    return answer


def _body(prompt: list[int], output_tokens: int) -> dict[str, object]:
    fixed = {"temperature": 0, "ignore_eos": True, "stream": True, "return_tokens": True}
    return {**fixed, "prompt": prompt, "n_predict": output_tokens, "cache_prompt": False}


def _ids(line: bytes) -> list[int]:
    """Of one line of the event stream; the last event repeats none."""
    if not line.startswith(b"data:"):
        return []
    event = json.loads(line.removeprefix(b"data:"))
    return [] if event.get("stop") else [int(each) for each in event.get("tokens", ())]


if __name__ == "__main__":
    serve(start, ("xllamacpp",))
