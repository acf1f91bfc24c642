"""How a command ends that failed: one line, and an exit code that scripts can tell apart."""

from __future__ import annotations

FAILURE = 1
USAGE = 2
CUT = 3
INTERRUPTED = 130
_BROKEN = ("Stream removed", "Connection reset", "Socket closed")
"""How gRPC begins what it says of a connection that it had; of one that it never had it says more before."""
_TOO_LATE = "Deadline Exceeded"
"""gRPC's own words for it, alone or in others."""


class CliError(Exception):
    """What went wrong, in one line that says what to change."""

    exit_code = FAILURE


class CutError(CliError):
    """An answer ended before it matched what it had to match."""

    exit_code = CUT


class UsageError(CliError):
    """The command was called in a way that it cannot follow."""

    exit_code = USAGE


def one_line(error: Exception) -> str | None:
    """The line for an error that a person can act on; None for a fault of our own."""
    if isinstance(error, CliError):
        return str(error)
    if (describe := getattr(error, "format_message", None)) is not None:  # typer's own
        return _with_help(error, str(describe()).replace("Value error, ", ""))
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if "HeadraceError" in kinds:
        return _with_reason(error)
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    if kinds & {"ModelError", "SettingsError", "BindError"} or isinstance(error, OSError):
        return str(error)
    return None


def no_chat_template(error: Exception) -> bool:
    """Whether the model continues texts but knows no turns."""
    wrong = getattr(error, "violations", ())
    return any(each.field == "chat" and "has no chat template" in each.description for each in wrong)


def _unreachable(why: str) -> str:
    """That a connection was not to be had, or broke, and what may help."""
    broke = why.startswith(_BROKEN)
    why = why.rpartition("last error: ")[2].removeprefix("UNKNOWN: ").removeprefix("UNAVAILABLE: ")
    if "CERTIFICATE_VERIFY_FAILED" in why:
        return f"no TLS with whom is there: {why}; --tls-authority names whose certificates to trust"
    if "handshake failed" in why:
        return f"no TLS there: {why}; without --tls it is plain text"
    if broke:
        return f"the connection broke, and nobody could take the call up: {why}"
    if "Socket closed" in why:
        return f"nobody answers there: {why} (a mesh with TLS needs --tls or --tls-authority)"
    return f"nobody answers there: {why} (`headrace up` starts a mesh on this machine)"


def _with_help(error: Exception, text: str) -> str:
    """What typer says of a wrong call, and where the right ones are told."""
    path = getattr(getattr(error, "ctx", None), "command_path", "")
    if not path or text.startswith("Usage:"):
        return text
    return f"{text.rstrip('.')}; `{path} --help` says what there is"


def exit_code(error: Exception) -> int:
    """2 for a wrong call, 1 for the rest."""
    return int(getattr(error, "exit_code", FAILURE))


def _with_reason(error: Exception) -> str:
    status = getattr(getattr(error, "code", None), "name", "UNKNOWN")
    reason = str(getattr(error, "reason", ""))
    code = status if reason in ("", status) else f"{status} ({reason})"
    text = " ".join(str(error).split())
    if status == "UNAVAILABLE" and not reason:
        return _unreachable(text)
    if reason == "NO_KEY":
        return f"{code}: this mesh needs an API key: give --api-key, or set HEADRACE_API_KEY"
    if status == "DEADLINE_EXCEEDED" and _TOO_LATE in text:
        _, refused, why = text.partition("; refused until then: ")
        return f"{code}: no whole answer within the time of --timeout{refused}{why}"
    if status == "NOT_FOUND" and text.startswith("the model "):
        return f"{code}: {text}; `headrace models` lists those that are"
    if no_chat_template(error):
        return f"{code}: {text}; `headrace generate --no-chat` continues a text as it is"
    retry_s = getattr(error, "retry_s", None)
    return f"{code}: {text}" + (f" (try again in {retry_s:g} s)" if retry_s else "")
