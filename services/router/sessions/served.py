"""What workers did for tenants, from totals that they tell: differences, as far as they can be true.

Work is counted at the workers under the tag of a tenant and a class, which only routers can read. Totals run
since the session began. One that falls, or grows faster than the worker can compute, is nonsense: it counts
for as much as is possible, so that no worker can talk a tenant out of its turn.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

from headrace.v1 import session_pb2

from services.router.policy.classify import LatencyClass

TENANTS_KEPT = 65_536
SLACK_TOKENS = 16_384.0
"""Beyond what a worker can compute in the time since its last frame."""
LONGEST_S = 10.0


class Work(NamedTuple):
    """Done for one tenant in one class since the last frame."""

    tag: bytes
    prompt_tokens: int
    output_tokens: int


def service_tag(tenant_tag: bytes, latency_class: LatencyClass) -> bytes:
    """The tag that work of a tenant in a class is counted under. 16 bytes, or none for no tenant."""
    return tenant_tag[:15] + bytes([latency_class]) if tenant_tag else b""


class TenantBook:
    """Tenants by their tags, as far as they have asked here lately."""

    def __init__(self) -> None:
        self._names: OrderedDict[bytes, str] = OrderedDict()

    def note(self, tenant_tag: bytes, name: str) -> None:
        """A tenant asked."""
        self._names[tenant_tag[:15]] = name
        self._names.move_to_end(tenant_tag[:15])
        if len(self._names) > TENANTS_KEPT:
            self._names.popitem(last=False)

    def read(self, tag: bytes) -> tuple[str, LatencyClass] | None:
        """Whose work it was, and in which class; None: nobody's that is known here."""
        name = self._names.get(tag[:15])
        if name is None or len(tag) != 16 or tag[15] not in set(LatencyClass):
            return None
        return name, LatencyClass(tag[15])


class ServedMeter:
    """The totals of one session."""

    def __init__(self, now: float) -> None:
        self._totals: dict[bytes, tuple[int, int]] = {}
        self._room = SLACK_TOKENS
        self._at_s = now
        self.faults = 0

    def differences(
        self, told: Iterable[session_pb2.TenantService], most_per_s: float, now: float
    ) -> list[Work]:
        """What is new in a frame. `most_per_s`: tokens that the worker can compute in a second."""
        passed_s = min(max(now - self._at_s, 0.0), LONGEST_S)
        self._room = min(self._room + passed_s * most_per_s, SLACK_TOKENS + LONGEST_S * most_per_s)
        self._at_s = now
        return [work for each in told if (work := self._difference(each)) is not None]

    def _difference(self, told: session_pb2.TenantService) -> Work | None:
        before = self._totals.get(told.tenant_tag, (0, 0))
        prompt, output = told.prompt_tokens - before[0], told.output_tokens - before[1]
        if len(told.tenant_tag) != 16 or (len(self._totals) >= TENANTS_KEPT and before == (0, 0)):
            self.faults += 1
            return None
        self._totals[told.tenant_tag] = (told.prompt_tokens, told.output_tokens)
        if prompt < 0 or output < 0:
            self.faults += 1
            return None
        return self._possible(told.tenant_tag, prompt, output)

    def _possible(self, tag: bytes, prompt: int, output: int) -> Work:
        asked = prompt + output
        if asked > self._room:  # no fault: an honest worker may be faster than it is believed to be
            share = max(self._room, 0.0) / asked
            prompt, output = int(prompt * share), int(output * share)
        self._room -= prompt + output
        return Work(tag, prompt, output)
