"""vLLM for CPUs behind its own HTTP server: requests with streamed replies, as a client would send them.

tcmalloc and Intel's OpenMP are loaded first, as vLLM's own log asks for.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp

from bench.peers.adapters.loop import Answer, Config, Job, Run, serve

START_S = 300.0
REQUEST_S = 300.0
KV_GIB = "2"
PRELOADED = ("libtcmalloc_minimal.so.4", "libiomp5.so")


@contextmanager
def start(config: Config) -> Iterator[Run]:
    """A server on a free port of loopback, without prefix caching."""
    port = _free_port()
    server = subprocess.Popen(_command(config, port), env=_environment(config), stdin=subprocess.DEVNULL)
    try:
        _wait(server, f"http://127.0.0.1:{port}/health")
        yield lambda job: asyncio.run(_run(job, f"http://127.0.0.1:{port}/v1/completions"))
    finally:
        server.terminate()
        try:
            server.wait(timeout=20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _command(config: Config, port: int) -> list[str]:
    command = [str(Path(sys.executable).with_name("vllm")), "serve", config.model]
    command += [
        "--served-model-name",
        "m",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--dtype",
        config.dtype,
    ]
    command += ["--max-model-len", "1024", "--max-num-seqs", "64"]
    return [*command, "--no-enable-prefix-caching", "--no-enable-log-requests"]


def _environment(config: Config) -> dict[str, str]:
    libraries = [Path(sys.prefix, "lib", name) for name in PRELOADED]
    return os.environ | {
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, config.cores[: config.threads])),
        "VLLM_CPU_KVCACHE_SPACE": KV_GIB,
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "LD_PRELOAD": ":".join(str(each) for each in libraries if each.exists()),
    }


def _wait(server: subprocess.Popen[bytes], url: str) -> None:
    end_s = time.monotonic() + START_S
    while time.monotonic() < end_s:
        if server.poll() is not None:
            raise RuntimeError(f"vllm serve ended with exit code {server.returncode}")
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise TimeoutError(f"vllm serve is not ready after {START_S:g} s")


async def _run(job: Job, url: str) -> list[Answer]:
    turn = asyncio.Semaphore(job.streams)
    timeout = aiohttp.ClientTimeout(total=REQUEST_S)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        bodies = [_body(prompt, job.output_tokens) for prompt in job.prompts]
        return await asyncio.gather(*(_ask(session, url, body, turn) for body in bodies))


def _body(prompt: list[int], output_tokens: int) -> dict[str, Any]:
    fixed = {"model": "m", "temperature": 0, "ignore_eos": True, "stream": True, "return_token_ids": True}
    return {**fixed, "prompt": prompt, "max_tokens": output_tokens}


async def _ask(
    session: aiohttp.ClientSession, url: str, body: dict[str, Any], turn: asyncio.Semaphore
) -> Answer:
    async with turn:
        answer = Answer()
        async with session.post(url, json=body) as reply:
            if reply.status != 200:
                raise RuntimeError(f"HTTP {reply.status}: {(await reply.text())[:200]}")
            async for line in reply.content:
                answer.arrived(_ids(line))
        return answer


def _ids(line: bytes) -> list[int]:
    """Of one line of the event stream."""
    data = line.removeprefix(b"data:").strip()
    if not line.startswith(b"data:") or data == b"[DONE]":
        return []
    return [each for choice in json.loads(data)["choices"] for each in choice.get("token_ids") or ()]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    serve(start, ("vllm-cpu", "torch"))
