"""What became of one request. All times are seconds of one monotonic clock."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

OK = "OK"


@dataclass(slots=True)
class Record:
    """Filled while the request runs; `end_s` is set last."""

    number: int
    latency_class: str
    intended_s: float
    sent_s: float = 0.0
    first_s: float | None = None
    last_s: float | None = None
    end_s: float = 0.0
    first_tokens: int = 0
    output_tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    cached_response: bool = False
    messages: int = 0
    gaps_s: array[float] = field(default_factory=lambda: array("d"))
    status: str = OK
    reason: str = ""
    why: str = ""
    retries: int = 0
    resumes: int = 0

    def arrived(self, now_s: float, tokens: int) -> None:
        """A message with output came."""
        if self.last_s is None:
            self.first_s, self.first_tokens = now_s, tokens
        else:
            self.gaps_s.append(now_s - self.last_s)
        self.last_s = now_s
        self.output_tokens += tokens

    @property
    def ok(self) -> bool:
        """Whether it got its answer."""
        return self.status == OK

    @property
    def send_lag_s(self) -> float:
        """How late the generator was."""
        return self.sent_s - self.intended_s

    @property
    def ttft_s(self) -> float | None:
        """From when it should have been sent to the first output."""
        return None if self.first_s is None else self.first_s - self.intended_s

    @property
    def e2e_s(self) -> float:
        """From when it should have been sent to its end."""
        return self.end_s - self.intended_s

    @property
    def tpot_s(self) -> float | None:
        """Mean time of an output token after the first message; None where nothing came after it."""
        rest = self.output_tokens - self.first_tokens
        if rest <= 0 or self.first_s is None or self.last_s is None:
            return None
        return (self.last_s - self.first_s) / rest
