"""The tree of commands; each lives in a file of its own."""

from __future__ import annotations

from typing import Annotated

import typer

from services.cli import chat, drain, generate, health, init, keys, models, version, workers
from services.cli.bench import command as bench
from services.cli.up import command as up

_ANY = {"ignore_unknown_options": True}


def build() -> typer.Typer:
    """The command line."""
    app = typer.Typer(
        name="headrace",
        help="Serves language models on GPUs through a mesh of gRPC services.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    app.command("up")(up.up)
    app.command("generate")(generate.generate)
    app.command("chat")(chat.chat)
    app.command("models")(models.models)
    app.add_typer(keys.app, name="keys")
    app.command("workers")(workers.workers)
    app.command("drain")(drain.drain)
    app.command("bench")(bench.bench)
    app.command("init")(init.init)
    app.command("health", help=health.HELP, add_help_option=False, context_settings=_ANY)(_health)
    app.command("version")(version.version)
    return app


def _health(arguments: Annotated[list[str], typer.Argument(metavar="ADDRESS")]) -> int:
    return health.health(arguments)
