"""Loads of an engine, and what each came to: steady decoding, prompts, offline, interference."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

from bench.gpu.drive import Engine, Track, percentile, prompt_of
from bench.gpu.gaps import Window
from services.worker.scheduler.request import LatencyClass

_ENDLESS = 1 << 20  # more than any context: such requests are aborted


class Decoding(NamedTuple):
    """Steady decoding of a batch."""

    rates: list[float]  # tokens a second, of each window
    host_ms: list[float]  # a step, without waiting for the device; the median of each window
    context: int  # tokens, the mean over all windows and sequences


class Steady:
    """So many sequences that only decode, for the time of a `with` block."""

    def __init__(self, engine: Engine, batch: int, context: int, seed: int = 0) -> None:
        self._engine = engine
        self._prompt = context
        self._seed = seed
        self._batch = batch
        self.tracks: list[Track] = []

    def __enter__(self) -> Steady:
        engine = self._engine
        outputs = min(_ENDLESS, engine.runner.spec.max_len - self._prompt - 1)
        self.tracks = [
            engine.submit(prompt_of(self._prompt, engine.vocab, 1000 * self._seed + index), outputs)
            for index in range(self._batch)
        ]
        engine.until(lambda: all(track.ids for track in self.tracks))
        self.turns(4)
        return self

    def __exit__(self, *_: object) -> None:
        for track in self.tracks:
            self._engine.abort(track)
        self._engine.finish(self.tracks)

    def turns(self, count: int) -> None:
        """So many steps more."""
        target = len(self._engine.turns) + count
        self._engine.until(lambda: len(self._engine.turns) >= target)

    def measure(self, windows: int, steps: int) -> Decoding:
        """Windows one after the other, of so many steps each."""
        rates, host_ms, contexts = [], [], []
        for _ in range(windows):
            first, began_s = len(self._engine.turns), time.perf_counter()
            self.turns(steps)
            window = Window(began_s, time.perf_counter())
            rates.append(window.rate(self.tracks))
            host_ms.append(1e3 * percentile([turn.host_s for turn in self._engine.turns[first:]], 50))
            contexts.append(sum(self._prompt + len(track.ids) for track in self.tracks) / len(self.tracks))
        return Decoding(rates, host_ms, int(sum(contexts) / len(contexts)))


def prefill(engine: Engine, prompt: int, count: int, seed: int) -> float:
    """Prompt tokens a second of prompts that come at once, none of them alike."""
    began_s = time.perf_counter()
    tracks = [engine.submit(prompt_of(prompt, engine.vocab, seed + index), 1) for index in range(count)]
    engine.finish(tracks)
    return prompt * count / (time.perf_counter() - began_s)


def offline(engine: Engine, prompt: int, outputs: int, count: int, seed: int) -> float:
    """Output tokens a second of requests that all come at once, from the first to the last."""
    began_s = time.perf_counter()
    tracks = [engine.submit(prompt_of(prompt, engine.vocab, seed + index), outputs) for index in range(count)]
    engine.finish(tracks)
    return sum(len(track.ids) for track in tracks) / (time.perf_counter() - began_s)


class Interference(NamedTuple):
    """What a long prompt does to those who read."""

    idle_p99_ms: float
    beside_p99_ms: float
    prompt_rate: float  # tokens a second; 0 where the prompt was not computed in time

    @property
    def ratio(self) -> float:
        return self.beside_p99_ms / self.idle_p99_ms


def interfere(
    engine: Engine, streams: int, prompt: int, idle_steps: int, seed: int, patience_s: float
) -> Interference:
    """Interactive streams alone, then beside a prompt of the batch class, which gets `patience_s`."""
    chat = [
        engine.submit(
            prompt_of(256, engine.vocab, seed + index),
            engine.runner.spec.max_len - 257,
            latency_class=LatencyClass.INTERACTIVE,
        )
        for index in range(streams)
    ]
    engine.until(lambda: all(len(track.ids) > 4 for track in chat))
    idle = _window(engine, chat, idle_steps)
    began_s = time.perf_counter()
    guest = engine.submit(
        prompt_of(prompt, engine.vocab, seed + streams), 1, latency_class=LatencyClass.BATCH
    )
    engine.until(lambda: guest.done or time.perf_counter() > began_s + patience_s)
    beside, computed = Window(began_s, time.perf_counter()), guest.done
    for track in (*chat, guest):
        engine.abort(track)
    engine.finish([*chat, guest])
    return Interference(
        1e3 * percentile(idle.gaps_s(chat), 99),
        1e3 * percentile(beside.gaps_s(chat) or [beside.seconds], 99),  # not one token all the while
        prompt / beside.seconds if computed else 0.0,
    )


def _window(engine: Engine, chat: Sequence[Track], steps: int) -> Window:
    began_s = time.perf_counter()
    wanted = [len(track.ids) + steps for track in chat]
    engine.until(lambda: all(len(track.ids) >= count for track, count in zip(chat, wanted, strict=True)))
    return Window(began_s, time.perf_counter())
