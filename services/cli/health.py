"""`headrace health`: the gRPC health check of containers, without a binary of its own.

It runs every few seconds in every container, so `__main__` calls it before anything else is imported, and it
imports grpc and nothing else of weight: no typer, which is why its flags are argparse's.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from services.cli.errors import CliError, UsageError

if TYPE_CHECKING:
    import grpc

TLS_FILES = ("authority", "certificate", "key")
HELP = "Exit with 0 when the service at ADDRESS is serving, else with 1."


def health(arguments: Sequence[str]) -> int:
    """Asks once. Raises CliError when the service does not say that it serves."""
    options = _parser().parse_args(arguments)
    if options.mesh:
        _take_mesh_tls(options)
    state = _ask(options)
    if state != "SERVING":
        raise CliError(f"{options.address}: {state}")
    print(state)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="headrace health",
        usage="%(prog)s [OPTIONS] {address}",
        description=HELP,
        formatter_class=_Help,
        add_help=False,
    )
    argument = parser.add_argument_group("Arguments").add_argument
    argument("address", metavar="{address}", help="host:port or unix:path of any service.")
    option = parser.add_argument_group("Options").add_argument
    option("--service", default="", metavar="<str>", help="Which service of it; default: the whole process.")
    option("--timeout", type=float, default=3.0, metavar="<float>", help="Seconds.  [default: 3.0]")
    for name in TLS_FILES:
        option(f"--tls-{name}", type=Path, metavar="<path>", help="PEM file.")
    option(
        "--mesh", action="store_true", help="An internal port: TLS as HEADRACE_MESH_TLS_… say, if they do."
    )
    option("--help", action="help", help="Show this message and exit.")
    return parser


class _Parser(argparse.ArgumentParser):
    """Tells of a wrong call as the other commands do."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; `{self.prog} --help` says what there is")


class _Help(argparse.HelpFormatter):
    """Looks like the help of the other commands."""

    def add_usage(self, usage: Any, actions: Any, groups: Any, prefix: str | None = None) -> None:
        super().add_usage(usage, actions, groups, prefix or "Usage: ")


def _take_mesh_tls(options: argparse.Namespace) -> None:
    for name in TLS_FILES:
        path = os.environ.get(f"HEADRACE_MESH_TLS_{name.upper()}")
        if path and getattr(options, f"tls_{name}") is None:
            setattr(options, f"tls_{name}", Path(path))


def _ask(options: argparse.Namespace) -> str:
    import grpc
    from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

    with _channel(options) as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=HealthCheckRequest.SerializeToString,
            response_deserializer=HealthCheckResponse.FromString,
        )
        try:
            found = check(HealthCheckRequest(service=options.service), timeout=options.timeout)
        except grpc.RpcError as error:
            raise CliError(f"{options.address}: {error.code().name}: {error.details()}") from None
    return str(HealthCheckResponse.ServingStatus.Name(found.status))


def _channel(options: argparse.Namespace) -> grpc.Channel:
    import grpc

    files = (options.tls_authority, options.tls_key, options.tls_certificate)
    if not any(files):
        return grpc.insecure_channel(options.address)
    try:
        read = (each.read_bytes() if each else None for each in files)
        return grpc.secure_channel(options.address, grpc.ssl_channel_credentials(*read))
    except OSError as error:
        raise UsageError(f"cannot read {error.filename}: {error.strerror}") from None
