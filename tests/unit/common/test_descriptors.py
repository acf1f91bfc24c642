from __future__ import annotations

import resource

import pytest

from services.common import descriptors


def limited(monkeypatch: pytest.MonkeyPatch, soft: int, hard: int) -> list[tuple[int, int]]:
    """This process seems to have these limits; what it asks for."""
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: asked.append(limits))
    return asked


@pytest.mark.parametrize(
    ("soft", "hard", "asked"),
    [
        (1024, 524_288, [(524_288, 524_288)]),
        (1024, 1 << 30, [(1 << 20, 1 << 30)]),
        (1024, resource.RLIM_INFINITY, [(1 << 20, resource.RLIM_INFINITY)]),
        (4096, 4096, []),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, []),
    ],
)
def test_a_process_asks_for_what_it_may_have(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, asked: list[tuple[int, int]]
) -> None:
    told = limited(monkeypatch, soft, hard)
    descriptors.ask_for_many()
    assert told == asked


@pytest.mark.parametrize(
    ("soft", "clients"), [(64, 32), (1024, 512), (20_000, 18_976), (resource.RLIM_INFINITY, (1 << 20) - 1024)]
)
def test_some_are_kept_from_clients(monkeypatch: pytest.MonkeyPatch, soft: int, clients: int) -> None:
    limited(monkeypatch, soft, soft)
    assert descriptors.for_clients() == clients
