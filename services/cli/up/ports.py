"""Ports of this machine."""

from __future__ import annotations

import socket

from services.cli.errors import CliError

LOOPBACK = "127.0.0.1"


def check_free(port: int) -> None:
    """Raises CliError when something listens on the port already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server will
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            raise CliError(
                f"cannot listen on {LOOPBACK}:{port} ({error.strerror}): choose another --port"
            ) from None


def free_ports(count: int) -> list[int]:
    """Ports that are free now, all different. Another process may take one before it is used."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind((LOOPBACK, 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()
