"""Settings from flags, environment and one TOML file, into frozen typed objects.

Later beats earlier: defaults < TOML section [mesh] < TOML section of the service < HEADRACE_<NAME> <
HEADRACE_<SERVICE>_<NAME> < --flag. The file is named by HEADRACE_CONFIG or --config. A wrong value ends the
process with exit code 2 and one line that names the setting, the value and what is allowed.

A setting lives beside what it sets: each service's `settings.py` extends ServiceSettings.
"""

from __future__ import annotations

import os
import re
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, NoReturn, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from pydantic_settings import SettingsError as UnreadableError

from services.common.logs import LogFormat, LogLevel
from services.common.members import MeshSecret
from services.common.transport import Listener, Tls

USAGE_ERROR = 2
Settings = TypeVar("Settings", bound="ServiceSettings")
_OF_NO_SERVICE = frozenset({"HEADRACE_CACHE_DIR", "HEADRACE_WORKER_LEASE_DIR"})
"""Variables that only look as if they were a service's."""
_SECTIONS = ("mesh", "router", "tokenizer", "worker", "cache")
"""Of the TOML file."""
_HOST_PORT = re.compile(r"(?:dns:///)?(?:\[[\w:.%]+\]|[\w.-]+):(\d{1,5})", re.ASCII)


def _address(least: int) -> Callable[[str], str]:
    def check(address: str) -> str:
        found = _HOST_PORT.fullmatch(address)
        if re.fullmatch("unix:.+", address) or (found and least <= int(found[1]) <= 65535):
            return address
        raise ValueError(f"allowed are host:port with a port of {least} to 65535, and unix:path")

    return check


Address = Annotated[str, AfterValidator(_address(1))]
"""Where a service is called: `host:port`, an IPv6 host in brackets, or `unix:path`."""
ListenAddress = Annotated[str, AfterValidator(_address(0))]
"""Where a service listens; port 0: any."""


class SettingsError(Exception):
    """A setting is wrong; the message is one line for the person who set it."""


class ServiceSettings(BaseSettings):
    """What every service can be told."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_ignore_empty=True)
    service: ClassVar[str] = ""

    log_level: LogLevel = Field(default="info", description="least severe event that is logged")
    log_format: LogFormat = Field(default="auto", description="auto: colours on a terminal, else JSON")
    metrics_listen: str | None = Field(
        default=None, description="host:port of the /metrics endpoint; unset: none; port 0: any"
    )
    mesh_secret_file: Path | None = Field(
        default=None,
        description="file with the secret that the whole mesh shares; every service needs it",
    )
    mesh_tls_certificate: Path | None = Field(default=None, description="PEM certificate for internal ports")
    mesh_tls_key: Path | None = Field(default=None, description="PEM key of mesh_tls_certificate")
    mesh_tls_authority: Path | None = Field(
        default=None, description="PEM authority that signs the certificates of all members (mutual TLS)"
    )
    insecure: bool = Field(default=False, description="allow plain text on addresses off loopback")
    start_timeout_s: float = Field(default=120.0, gt=0, description="longest start, in seconds")
    drain_timeout_s: float = Field(
        default=15.0, ge=0, description="how long running requests may go on after a stop signal, in seconds"
    )

    @property
    def mesh_tls(self) -> Tls:
        """TLS of internal ports."""
        return Tls(
            certificate=self.mesh_tls_certificate, key=self.mesh_tls_key, authority=self.mesh_tls_authority
        )

    def listener(self, name: str = "listen", tls: Tls | None = None) -> Listener:
        """What the setting of this name says of a port; `tls`: its own, if it is not an internal one."""
        return Listener(
            getattr(self, name), self.mesh_tls if tls is None else tls, self.insecure, variable(self, name)
        )

    def mesh_secret(self) -> MeshSecret:
        """The mesh secret. Raises SettingsError when it is missing or cannot be used."""
        if self.mesh_secret_file is None:
            raise SettingsError(
                f"{variable(self, 'mesh_secret_file')} is not set: the file with the mesh secret, as "
                "`headrace init` writes it"
            )
        try:
            return MeshSecret.read(self.mesh_secret_file)
        except (OSError, ValueError) as error:
            raise SettingsError(f"{variable(self, 'mesh_secret_file')}: {of_file(error)}") from None

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_: Any, **__: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Orders the sources, the strongest first."""
        own, known = f"HEADRACE_{cls.service.upper()}_", {cls.service, *_SECTIONS}
        return (
            init_settings,
            EnvSettingsSource(settings_cls, env_prefix=own),
            EnvSettingsSource(settings_cls, env_prefix="HEADRACE_"),
            _TomlSource(settings_cls, cls.service, known),
            _TomlSource(settings_cls, "mesh", known),
        )

    @classmethod
    def load(cls, arguments: list[str] | None = None) -> Self:
        """Reads all sources; `arguments` are command-line flags. Raises SettingsError."""
        try:
            if arguments is None:
                return cls()
            return cls(**_flags(cls, _take_config(arguments)))
        except ValidationError as error:
            raise SettingsError(_describe(cls, error)) from None
        except UnreadableError as error:
            raise SettingsError(_unreadable(cls, error)) from None


class SettingsGroup(BaseModel):
    """Settings that belong together: a table of the TOML file, JSON in one variable."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def variable(settings: ServiceSettings | type[ServiceSettings], name: str) -> str:
    """The environment variable of a setting, as messages name it."""
    return f"HEADRACE_{settings.service.upper()}_{name.upper()}"


def load_or_exit(kind: type[Settings], arguments: list[str]) -> Settings:
    """Loads settings, or prints the one line and exits with code 2."""
    try:
        return kind.load(arguments)
    except SettingsError as error:
        fail(str(error))


def fail(line: str) -> NoReturn:
    """Ends the process over wrong settings, a line each."""
    for each in line.splitlines():
        print(f"headrace: {each}", file=sys.stderr)
    raise SystemExit(USAGE_ERROR)


def _flags(kind: type[ServiceSettings], arguments: list[str]) -> dict[str, Any]:
    """What the command line says. Raises UnreadableError for a flag that does not exist."""
    program = f"python -m services.{kind.service}"
    source: CliSettingsSource[Any] = CliSettingsSource(
        kind,
        cli_prog_name=program,
        cli_exit_on_error=False,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
    )
    source.root_parser.usage = f"{program} [--config FILE] [--SETTING VALUE]…"
    return dict(source(args=arguments)())


class _TomlSource(PydanticBaseSettingsSource):
    """One section of the TOML file."""

    def __init__(self, settings_cls: type[BaseSettings], section: str, known: Iterable[str]) -> None:
        super().__init__(settings_cls)
        self._values = read_section(os.environ.get("HEADRACE_CONFIG"), section, known)

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        return self._values.get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        return dict(self._values)


def read_section(path: str | None, section: str, known: Iterable[str] = _SECTIONS) -> dict[str, Any]:
    """A section of the TOML file, empty where there is none. Raises SettingsError for what cannot be read."""
    if not path:
        return {}
    try:
        with open(path, "rb") as file:
            sections = tomllib.load(file)
    except OSError as error:
        raise SettingsError(f"HEADRACE_CONFIG: {of_file(error)}") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"HEADRACE_CONFIG: {path}: {error}") from None
    if strange := sorted(sections.keys() - set(known)):
        allowed = ", ".join(_SECTIONS)
        raise SettingsError(f"HEADRACE_CONFIG: {path}: {strange[0]} is no section; there are {allowed}")
    found = sections.get(section, {})
    if not isinstance(found, dict):
        raise SettingsError(f"HEADRACE_CONFIG: {path}: [{section}] is not a table")
    return found


def of_file(error: Exception) -> str:
    """What is wrong with a file, named once."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _take_config(arguments: list[str]) -> list[str]:
    """Moves `--config FILE` into the environment, where the TOML source looks."""
    rest = list(arguments)
    for position, argument in enumerate(arguments):
        if argument == "--config" and position + 1 < len(arguments):
            os.environ["HEADRACE_CONFIG"] = arguments[position + 1]
            del rest[position : position + 2]
        elif argument.startswith("--config="):
            os.environ["HEADRACE_CONFIG"] = argument.removeprefix("--config=")
            rest.remove(argument)
    return rest


def _unreadable(kind: type[ServiceSettings], error: UnreadableError) -> str:
    """A flag that is none, or a group whose value is no JSON: only the error's sentence tells which one."""
    name = next((name for name in kind.model_fields if f'"{name}"' in str(error)), None)
    if name:
        return f"{variable(kind, name)}: is not JSON"
    told = str(error).removeprefix("error parsing CLI: ")
    return f"{told}; `python -m services.{kind.service} --help` lists all"


def unknown_variables(kind: type[ServiceSettings], environment: Iterable[str]) -> list[str]:
    """Variables with the service's own prefix that set nothing: misspelt, or of another version."""
    prefix = f"HEADRACE_{kind.service.upper()}_"
    known = {variable(kind, name) for name in kind.model_fields} | _OF_NO_SERVICE
    return sorted(
        each for each in environment if each.upper().startswith(prefix) and each.upper() not in known
    )


def _describe(kind: type[ServiceSettings], error: ValidationError) -> str:
    """A line for each wrong setting, and each thing that is wrong with it."""
    return "\n".join(line for each in error.errors() for line in _lines(kind, each))


def _lines(kind: type[ServiceSettings], error: Any) -> Iterator[str]:
    name = str(error["loc"][0]) if error["loc"] else "settings"
    dotted = ".".join(str(part) for part in error["loc"] if isinstance(part, str))
    if error["type"] == "extra_forbidden":
        yield f"{dotted} is not a setting of {kind.service}"
        return
    shown = "" if isinstance(error["input"], dict | BaseModel) else f" = {error['input']!r}"
    flag = f"--{dotted.replace('_', '-')}"
    for line in error["msg"].removeprefix("Value error, ").splitlines():
        yield f"{variable(kind, name)} ({flag}){shown}: {line}"
