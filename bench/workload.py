"""What an engine is asked to do: requests with their times and lengths, the same for the same seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple, Self

import numpy as np

from services.worker.scheduler.request import Ids, LatencyClass, Request, Sampling

NOTHING = np.empty(0, np.int32)
_FIRST_WORD = 3  # ids below it are special tokens of most vocabularies


class Lengths(NamedTuple):
    """Numbers of tokens, drawn evenly from `least` to `most`."""

    least: int
    most: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """`128`, or `64-256`. Raises ValueError."""
        least, dash, most = text.partition("-")
        lengths = cls(int(least), int(most if dash else least))
        if not 1 <= lengths.least <= lengths.most:
            raise ValueError(f"{text} is out of range: allowed is N or N-M with 1 <= N <= M")
        return lengths

    def draw(self, random: np.random.Generator) -> int:
        return int(random.integers(self.least, self.most, endpoint=True))


class Job(NamedTuple):
    """A request that has not been submitted."""

    at_s: float  # after the start; 0 where there is no schedule
    prompt: Ids
    output_tokens: int
    latency_class: LatencyClass
    sampling: Sampling
    delivered: Ids = NOTHING  # output that the caller has, of an earlier attempt

    def request(self, handle: int, now: float, **more: object) -> Request:
        """To submit now; `more` are further fields of a Request."""
        fields = {
            "handle": handle,
            "prompt": self.prompt,
            "delivered": self.delivered,
            "max_tokens": self.output_tokens,
            "arrival_s": now,
            "sampling": self.sampling,
            "latency_class": self.latency_class,
        }
        return Request(**(fields | more))  # type: ignore[arg-type]


class Work(NamedTuple):
    """Of what requests consist."""

    prompt: Lengths
    output: Lengths
    vocab: int
    temperature: float = 0.0  # 0: greedy

    def job(
        self,
        random: np.random.Generator,
        at_s: float = 0.0,
        latency_class: LatencyClass = LatencyClass.STANDARD,
    ) -> Job:
        """One request; it runs to its length, whatever ids come."""
        sampling = Sampling(temperature=self.temperature, seed=int(random.integers(2**63)), ignore_eos=True)
        count = self.prompt.draw(random)
        prompt = random.integers(min(_FIRST_WORD, self.vocab - 1), self.vocab, count, np.int32)
        return Job(at_s, prompt, self.output.draw(random), latency_class, sampling)


def offline(
    work: Work, count: int, seed: int, latency_class: LatencyClass = LatencyClass.STANDARD
) -> list[Job]:
    """`count` requests without times."""
    random = np.random.default_rng(seed)
    return [work.job(random, latency_class=latency_class) for _ in range(count)]


def online(
    work: Work, rate: float, seconds: float, seed: int, mix: Mapping[LatencyClass, float]
) -> list[Job]:
    """Poisson arrivals at `rate` a second within `seconds`; classes are drawn by their weights in `mix`."""
    random = np.random.default_rng(seed)
    classes = list(mix)
    weights = np.array([mix[each] for each in classes])
    return [
        work.job(random, at_s, classes[random.choice(len(classes), p=weights / weights.sum())])
        for at_s in _poisson(random, rate, seconds)
    ]


def parse_mix(text: str) -> dict[LatencyClass, float]:
    """`interactive=3,batch=1`. Raises ValueError."""
    pairs = [part.partition("=") for part in text.split(",")]
    try:
        mix = {LatencyClass[name.strip().upper()]: float(weight or 1) for name, _, weight in pairs}
    except KeyError as error:
        names = ", ".join(each.name.lower() for each in LatencyClass)
        raise ValueError(f"{error} is no class; allowed are {names}") from None
    if not all(weight >= 0 for weight in mix.values()) or not sum(mix.values()) > 0:
        raise ValueError(f"{text} is out of range: weights are not negative, and not all 0")
    return mix


def _poisson(random: np.random.Generator, rate: float, seconds: float) -> Iterator[float]:
    at_s = random.exponential(1.0 / rate)
    while at_s < seconds:
        yield at_s
        at_s += random.exponential(1.0 / rate)
