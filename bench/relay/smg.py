"""The real SMG, from an environment of its own, over an equal mock worker.

    python -m venv V; V/bin/pip install smg==1.13.0 smg-grpc-proto==0.4.28
    python -m bench.relay --smg V/bin/python

It serves HTTP/1.1 with server-sent events, and detokenises. What it is asked is text of about as many tokens.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from bench.relay.clients import Seen, Ways
from bench.relay.mesh import PROSE, Site
from bench.relay.processes import LOOPBACK, ROOT, START_S, Child, free_port
from bench.relay.trial import Contender

MODEL = "model"
PROMPT = (PROSE * 2)[:600]
_POLL_S = 0.1
_LIMIT_S = 60.0
_END = b"0\r\n\r\n"


async def contenders(site: Site, python: Path) -> list[Contender]:
    """SMG over workers that tell one token a message, and four."""
    return [await _contender(site, python, tokens) for tokens in (1, 4)]


async def _contender(site: Site, python: Path, tokens: int) -> Contender:
    model = str(site.model.path)
    command = [
        str(python), str(ROOT / "bench/relay/smg_worker.py"), "--model", model, "--ids", str(site.ids),
        "--step-s", str(site.step_s), "--tokens", str(tokens),
    ]  # fmt: skip
    worker = site.module(f"smg-worker-{tokens}", command, site.rest)
    port = free_port()
    command = [
        str(python.with_name("smg")), "launch", "--host", LOOPBACK, "--port", str(port), "--backend", "vllm",
        "--worker-urls", f"grpc://{LOOPBACK}:{worker.port}", "--model-path", model, "--policy", "round_robin",
        "--prometheus-host", LOOPBACK, "--prometheus-port", str(free_port()), "--log-level", "error",
    ]  # fmt: skip
    child = site.keep(lambda: Child(f"smg-{tokens}", command, core=site.measured, scratch=site.scratch))
    await _ready(child, port)
    plural = "token" if tokens == 1 else "tokens"
    return Contender(f"SMG, {tokens} {plural} a message", (child,), partial(_over_http, port, tokens))


async def _ready(child: Child, port: int) -> None:
    end_s = time.monotonic() + START_S
    while time.monotonic() < end_s and child.running:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            async with _Connections(port) as connections:
                if (await connections.get("/readiness"))[0] == 200:
                    return
        await asyncio.sleep(_POLL_S)
    raise child.failed("does not serve")


@asynccontextmanager
async def _over_http(port: int, tokens_a_message: int) -> AsyncIterator[Ways]:
    async with _Connections(port) as connections:

        async def stream(tokens: int, seen: Seen) -> None:
            await asyncio.wait_for(connections.stream(tokens, tokens_a_message, seen), _LIMIT_S)

        async def once() -> None:
            status, body = await connections.post(_asked(1, stream=False))
            if status != 200:
                raise RuntimeError(f"SMG said {status}: {body[:200]!r}")

        yield Ways(stream, once)


def _asked(tokens: int, *, stream: bool) -> bytes:
    asked = {"model": MODEL, "prompt": PROMPT, "max_tokens": tokens, "stream": stream, "ignore_eos": True}
    return json.dumps(asked).encode()


class _Connections:
    """HTTP/1.1 connections that are used again."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def __aenter__(self) -> _Connections:
        return self

    async def __aexit__(self, *_: object) -> None:
        for _reader, writer in self._idle:
            writer.close()

    async def get(self, path: str) -> tuple[int, bytes]:
        """Status and body."""
        return await self._call(f"GET {path} HTTP/1.1\r\nhost: {LOOPBACK}\r\n\r\n".encode())

    async def post(self, body: bytes) -> tuple[int, bytes]:
        """Status and body."""
        return await self._call(_posted(body))

    async def stream(self, tokens: int, tokens_a_message: int, seen: Seen) -> None:
        """Counts events with text. Raises RuntimeError for an answer that is not whole."""
        reader, writer = await self._connection()
        had, before_s = 0, time.monotonic()
        writer.write(_posted(_asked(tokens, stream=True)))
        await reader.readuntil(b"\r\n\r\n")
        while b"data: [DONE]" not in (event := await reader.readuntil(b"\n\n")):
            if b'"text":""' in event:
                continue
            now_s = time.monotonic()
            told = 1 if had == 0 else min(tokens_a_message, tokens - had)
            seen.message(told, before_s, now_s, first=had == 0)
            had, before_s = had + told, now_s
        await reader.readuntil(_END)
        self._idle.append((reader, writer))
        if had != tokens:
            raise RuntimeError(f"{had} of {tokens} tokens came")

    async def _call(self, asked: bytes) -> tuple[int, bytes]:
        reader, writer = await self._connection()
        writer.write(asked)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
        body = await reader.readexactly(length)
        self._idle.append((reader, writer))
        return int(head.split()[1]), body

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return self._idle.pop() if self._idle else await asyncio.open_connection(LOOPBACK, self._port)


def _posted(body: bytes) -> bytes:
    head = (
        f"POST /v1/completions HTTP/1.1\r\nhost: {LOOPBACK}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
