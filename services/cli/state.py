"""The state directory: secrets, keys, salts and logs of one `headrace up`, for its owner alone."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from services.cli.errors import CliError


@dataclass(frozen=True)
class StateDir:
    """Where things are in the directory."""

    path: Path

    @property
    def master_secret(self) -> Path:
        return self.path / "master.secret"

    @property
    def mesh_secret(self) -> Path:
        return self.path / "mesh.secret"

    @property
    def salts(self) -> Path:
        return self.path / "salts"

    @property
    def keys(self) -> Path:
        return self.path / "keys.toml"

    @property
    def tenants(self) -> Path:
        return self.path / "tenants.toml"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def lock(self) -> Path:
        return self.path / "up.lock"

    @property
    def sockets(self) -> Path:
        """The file that names the directory of the run's sockets."""
        return self.path / "up.sockets"

    @property
    def running(self) -> Path:
        return self.path / "running.json"

    def prepare(self) -> None:
        """Makes the directory and the secrets where they are missing. Raises CliError."""
        from services.common.members import write_new_secret

        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.path.chmod(0o700)
            for directory in (self.salts, self.logs):
                directory.mkdir(exist_ok=True, mode=0o700)
            for secret in (self.master_secret, self.mesh_secret):
                write_new_secret(secret)
        except OSError as error:
            raise CliError(f"cannot use the state directory {self.path}: {error.strerror}") from None


@dataclass(frozen=True)
class Running:
    """What a running `headrace up` tells other commands."""

    pid: int
    address: str
    admin_address: str


def locate(given: Path | None, environment: Mapping[str, str] = os.environ) -> StateDir:
    """The given one, else $HEADRACE_STATE_DIR, else `headrace` in $XDG_STATE_HOME or ~/.local/state."""
    own = given or environment.get("HEADRACE_STATE_DIR")
    if own:
        return StateDir(Path(own).expanduser().absolute())
    shared = environment.get("XDG_STATE_HOME")
    return StateDir((Path(shared) if shared else Path.home() / ".local" / "state") / "headrace")


def write_running(state: StateDir, running: Running) -> None:
    """Tells other commands where the mesh is."""
    state.running.write_text(json.dumps(asdict(running)))


def read_running(state: StateDir) -> Running | None:
    """What the mesh of this directory said about itself; None when there is none."""
    try:
        return Running(**json.loads(state.running.read_text()))
    except (OSError, ValueError, TypeError):
        return None
