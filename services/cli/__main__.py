"""The `headrace` command. Commands import what they need when they run: the start must stay cheap."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from services.cli.errors import INTERRUPTED, exit_code, one_line


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code: 0, 1 failure, 2 wrong call, 3 cut, 130 Ctrl-C."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # gRPC tells people of every connection that ends
    try:
        code = _run(given)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the flush at exit has nobody either
        return 1
    except Exception as error:
        line = one_line(error)
        if line is None:
            raise
        print(line if line.startswith("Usage:") else f"headrace: {line}", file=sys.stderr)
        return exit_code(error)


def _run(arguments: list[str]) -> int:
    if arguments[:1] == ["health"]:
        from services.cli.health import health

        return health(arguments[1:])
    from services.cli.app import build

    if arguments == ["--version"]:
        arguments = ["version"]
    result = build()(args=arguments, standalone_mode=False, prog_name="headrace")
    return result if isinstance(result, int) else 0


if __name__ == "__main__":
    raise SystemExit(main())
