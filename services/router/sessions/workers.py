"""All workers' sessions of this router process."""

from __future__ import annotations

from collections.abc import Iterator

from services.router.chains import ChainKind
from services.router.sessions.session import Session


class Workers:
    """Sessions by the worker's name; a worker has one session here."""

    def __init__(self) -> None:
        self._sessions: dict[str, Session] = {}
        self._kinds: dict[str, list[ChainKind]] = {}
        self._of: dict[str, list[Session]] = {}
        self._longest: dict[str, int] = {}

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._sessions.values()))

    def get(self, worker_id: str) -> Session | None:
        """The session of a worker."""
        return self._sessions.get(worker_id)

    def add(self, session: Session) -> Session | None:
        """Adds a session and returns the one that it replaces."""
        self._forget()
        earlier = self._sessions.get(session.worker_id)
        self._sessions[session.worker_id] = session
        return earlier

    def remove(self, session: Session) -> bool:
        """Removes a session unless a newer one of the same worker is there; returns whether it was."""
        if self._sessions.get(session.worker_id) is not session:
            return False
        del self._sessions[session.worker_id]
        self._forget()
        return True

    def of(self, model: str) -> list[Session]:
        """The sessions that serve a model."""
        found = self._of.get(model)
        if found is None:
            found = self._of[model] = [each for each in self._sessions.values() if each.model == model]
        return found

    def models(self) -> set[str]:
        """The models that are served."""
        return {each.model for each in self._sessions.values()}

    def numerics(self, model: str) -> list[tuple[bytes, bytes]]:
        """Weights and numerics digests among a model's workers, each pair once, in a stable order."""
        digests = (each.hello.digests for each in self.of(model))
        return sorted({(each.weights, each.numerics) for each in digests})

    def chain_kinds(self, model: str) -> list[ChainKind]:
        """Kinds of block names among a model's workers that reuse blocks, in a stable order."""
        found = self._kinds.get(model)
        if found is None:
            kinds = {each.chain_kind for each in self.of(model) if each.chain_kind is not None}
            found = self._kinds[model] = sorted(kinds)
        return found

    def context_length(self, model: str, limit: int) -> int:
        """Most tokens of one sequence that some worker takes, at most `limit`."""
        longest, sessions = self._longest.get(model), self.of(model)
        if not sessions:
            return limit
        if longest is None:
            longest = self._longest[model] = max(each.hello.kv_spec.max_tokens for each in sessions)
        return min(longest, limit)

    def capabilities(self, model: str) -> frozenset[str]:
        """What all workers of a model can do."""
        found = [each.capabilities for each in self.of(model)]
        return frozenset.intersection(*found) if found else frozenset()

    def _forget(self) -> None:
        """Drops what is only true of the sessions that there were."""
        for known in (self._kinds, self._of, self._longest):
            known.clear()
