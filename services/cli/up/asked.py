"""What the user says, by environment or file, of settings that `headrace up` would else choose itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from services.cli.errors import UsageError
from services.cli.up.ports import LOOPBACK, free_ports

Environment = Mapping[str, str]
DRAIN_S = 15.0
PUBLIC_PORTS = "HEADRACE_ROUTER_PUBLIC_PORTS"


def asked(environment: Environment, service: str, name: str) -> str | None:
    """What is set for this service, else for all; None where nothing is. Raises SettingsError."""
    told = environment.get(f"HEADRACE_{service.upper()}_{name}") or environment.get(f"HEADRACE_{name}")
    if told or not (path := environment.get("HEADRACE_CONFIG")):
        return told
    from services.common.settings import read_section

    sections = (read_section(path, section) for section in (service, "mesh"))
    return next((str(each[name.lower()]) for each in sections if name.lower() in each), None)


def drain_s(environment: Environment, service: str) -> float:
    """How long running requests may go on when the service is asked to end, in seconds. Raises UsageError."""
    text = asked(environment, service, "DRAIN_TIMEOUT_S")
    try:
        seconds = float(text) if text else DRAIN_S
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise UsageError(f"DRAIN_TIMEOUT_S of the {service} = {text!r}: allowed are seconds from 0")
    return seconds


def threads(environment: Environment) -> int | None:
    """CPU threads of each worker; None where nothing is set. Raises UsageError."""
    text = asked(environment, "worker", "THREADS")
    if not text:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"HEADRACE_WORKER_THREADS = {text!r}: allowed are whole numbers from 1")
    return int(text)


def metrics_addresses(environment: Environment, services: Sequence[str]) -> list[str]:
    """Where each process shows its numbers: any free port, or counted up from the one that is set.

    Raises UsageError.
    """
    free = iter(free_ports(len(services)))
    given: Counter[str] = Counter()
    found = []
    for service in services:
        address = asked(environment, service, "METRICS_LISTEN") or f"{LOOPBACK}:0"
        host, _, port = address.rpartition(":")
        if not port.isdecimal():
            raise UsageError(f"METRICS_LISTEN of the {service} = {address!r}: write host:port")
        number = int(port) + given[address] if int(port) else next(free)
        found.append(f"{host}:{number}")
        given[address] += 1
    return found


def check_public_ports(environment: Environment, routers: int) -> None:
    """Raises UsageError where each router was to have a public port of its own: here they share one."""
    if routers > 1 and environment.get(PUBLIC_PORTS) == "counted":
        raise UsageError(
            f"{PUBLIC_PORTS} = 'counted': the routers of `headrace up` share --port; unset it, "
            "or run `python -m services.router` itself"
        )
