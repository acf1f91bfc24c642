"""File descriptors of a process: every connection takes one, and so do its own dealings with the mesh.

A system gives a process few of them, and many where it asks (1,024 and half a million are usual). Strangers
can take as many as they like: to connect they need no key.
"""

from __future__ import annotations

import resource
from contextlib import suppress

KEPT = 1024
"""Of many, so many are never a client's: for workers, tokenizers, the cache, files, who reads the metrics."""
_MANY = 1 << 20


def ask_for_many() -> None:
    """Raises this process's limit to what it may have, where the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MANY if hard == resource.RLIM_INFINITY else min(hard, _MANY)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def for_clients() -> int:
    """Connections that clients may hold at one time: all but those kept, or half where there are few."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = _MANY if soft == resource.RLIM_INFINITY else soft
    return max(limit // 2, limit - KEPT)
