"""gRPC servers and channels with the channel arguments of the mesh, and what a listener may bind to.

Keepalive: a server must allow pings more often than any client sends them; the effective key is
`grpc.http2.min_ping_interval_without_data_ms` (the often copied `min_recv_ping_interval…` does nothing).
While another ping is under way (gRPC measures bandwidth by them) none of keepalive's is sent: without a limit
of its own, `grpc.http2.ping_timeout_ms`, a peer that freezes then is noticed after a minute.
`grpc.so_reuseport` is on by default in grpcio, where a stale server silently takes half of the connections:
here it is off unless several processes mean to share a port.
"""

from __future__ import annotations

import ipaddress
import json
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import grpc

MAX_MESSAGE_BYTES = 32 << 20
_IDEMPOTENT_RETRY = {
    "maxAttempts": 3,
    "initialBackoff": "0.02s",
    "maxBackoff": "0.5s",
    "backoffMultiplier": 3,
    "retryableStatusCodes": ["UNAVAILABLE"],
}


@dataclass(frozen=True, kw_only=True)
class Tls:
    """Files of one side of a TLS connection, PEM. `authority` makes a server ask for client certificates."""

    certificate: Path | None = None
    key: Path | None = None
    authority: Path | None = None

    @property
    def enabled(self) -> bool:
        """Whether anything is set: what is set but incomplete is refused, never plain text."""
        return any(path is not None for path in (self.certificate, self.key, self.authority))


class Listener(NamedTuple):
    """Where a server listens."""

    address: str
    tls: Tls = Tls()
    insecure: bool = False
    """Plain text is allowed off loopback."""
    setting: str = "listen"
    """What sets the address, as messages name it."""


class BindError(Exception):
    """A listener cannot be opened; the message says what to change."""


def check_listener(listener: Listener) -> None:
    """Raises BindError for plain text off loopback that nobody asked for."""
    if not (listener.tls.enabled or listener.insecure or is_loopback(listener.address)):
        raise BindError(
            f"{listener.address} is not a loopback address and has no TLS: set certificate and key, "
            "bind 127.0.0.1, or allow plain text with insecure=true"
        )


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach the address (`host:port` or `unix:path`)."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


MOST_PENDING = 100_000
"""Calls that may have come and wait for the event loop. Of more, gRPC cancels, without a word and whosever
they are: by its own default some from 1,000 on, and all from 3,000 on."""


def server(
    *,
    reuse_port: bool = False,
    max_connection_age_s: float | None = None,
    most_connections: int | None = None,
) -> grpc.aio.Server:
    """A server without listeners. Streams and sizes are bounded by the application, not by HTTP/2.

    Of connections beyond `most_connections` each is closed at once: who dials it is told UNAVAILABLE.
    """
    options: list[tuple[str, int]] = [
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.ping_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.server_handshake_timeout_ms", 10_000),  # by default a silent connection is kept two minutes
        ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
        ("grpc.max_concurrent_streams", 10_000),
        ("grpc.server.max_pending_requests", MOST_PENDING),
        ("grpc.server.max_pending_requests_hard_limit", MOST_PENDING),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", int(reuse_port)),
    ]
    if max_connection_age_s is not None:
        options.append(("grpc.max_connection_age_ms", int(max_connection_age_s * 1000)))
    if most_connections is not None:
        options.append(("grpc.max_allowed_incoming_connections", most_connections))
    return grpc.aio.server(options=options)


def listen(server: grpc.aio.Server, listener: Listener) -> int:
    """Opens a listener and returns its port. Raises BindError, which names the setting."""
    check_listener(listener)
    address, tls = listener.address, listener.tls
    try:
        if tls.enabled:
            return server.add_secure_port(address, _server_credentials(tls))
        return server.add_insecure_port(address)
    except (RuntimeError, OSError) as error:
        reason = _reason(address, error)
        raise BindError(f"cannot listen on {address}: {reason}; {listener.setting} sets another") from None


def _reason(address: str, error: Exception) -> str:
    """What the system says against a listener there: gRPC only says that there is none."""
    host, _, port = address.removeprefix("dns:///").rpartition(":")
    try:
        family, kind, _, _, where = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except OSError as reason:
        return reason.strerror or str(reason)
    return str(error).partition(";")[0]


def channel(address: str, tls: Tls, *, retry_services: tuple[str, ...] = ()) -> grpc.aio.Channel:
    """A channel to one address; calls of `retry_services` (idempotent ones) are retried while UNAVAILABLE."""
    config = {
        "methodConfig": [
            {"name": [{"service": name}], "retryPolicy": _IDEMPOTENT_RETRY} for name in retry_services
        ]
    }
    options: list[tuple[str, int | str]] = [
        ("grpc.keepalive_time_ms", 5_000),
        ("grpc.keepalive_timeout_ms", 5_000),
        ("grpc.http2.ping_timeout_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.min_reconnect_backoff_ms", 2_000),  # of one attempt to connect, not between two
        ("grpc.max_reconnect_backoff_ms", 1_000),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", -1),
        ("grpc.service_config", json.dumps(config)),
    ]
    if tls.enabled:
        return grpc.aio.secure_channel(address, _channel_credentials(tls), options=options)
    return grpc.aio.insecure_channel(address, options=options)


def end(call: grpc.aio.Call) -> None:
    """Cancels a call for good, whatever became of it.

    A call whose write failed is over for grpc.aio, whose `cancel` does nothing then. But its half in the core
    waits until all that had come is read, which nobody does: it would stay for ever, with a task.
    """
    if not call.cancel() and (core := getattr(call, "_cython_call", None)) is not None:
        core.cancel("ended")


def _server_credentials(tls: Tls) -> grpc.ServerCredentials:
    pair = (_needed(tls.key, "a key"), _needed(tls.certificate, "a certificate"))
    authority = _optional(tls.authority)
    return grpc.ssl_server_credentials([pair], authority, require_client_auth=authority is not None)


def _channel_credentials(tls: Tls) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(
        root_certificates=_optional(tls.authority),
        private_key=_optional(tls.key),
        certificate_chain=_optional(tls.certificate),
    )


def _needed(path: Path | None, what: str) -> bytes:
    content = _optional(path)
    if content is None:
        raise BindError(f"TLS is set in part: {what} is missing")
    return content


def _optional(path: Path | None) -> bytes | None:
    try:
        return None if path is None else path.read_bytes()
    except OSError as error:
        raise BindError(f"TLS: {path}: {error.strerror}") from None
