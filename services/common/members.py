"""Who belongs to the mesh: everybody who can prove knowledge of the mesh secret.

On unary internal RPCs (tokenizer, cache, admin) a member sends a token that is derived from the secret for
that one service, so that a token seen by one service opens no other. On sessions both sides answer a
challenge: the secret never travels, a recorded handshake is worth nothing, and a worker does not hand its
GPU to a false router.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import tempfile
from pathlib import Path

from services.common.errors import Unauthenticated

METADATA_KEY = "headrace-member"
NONCE_BYTES = 32
MIN_SECRET_BYTES = 32


class MeshSecret:
    """The secret that all parts of one mesh share."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) < MIN_SECRET_BYTES:
            raise ValueError(
                f"the mesh secret has {len(secret)} bytes, at least {MIN_SECRET_BYTES} are needed"
            )
        self._secret = secret

    @classmethod
    def read(cls, path: Path) -> MeshSecret:
        """Reads the secret from a file (hex or raw). Raises OSError or ValueError."""
        return cls(read_secret(path))

    def token(self, service: str) -> str:
        """What a member shows to `service` ("tokenizer", "cache", "admin") in METADATA_KEY."""
        return self._mac(b"member", service.encode()).hex()

    def metadata(self, service: str) -> tuple[tuple[str, str], ...]:
        """Metadata of a member's call to `service`."""
        return ((METADATA_KEY, self.token(service)),)

    def check_token(self, service: str, shown: str | bytes | None) -> None:
        """Raises Unauthenticated unless `shown` is the token of `service`."""
        given = shown.encode() if isinstance(shown, str) else shown or b""
        if not hmac.compare_digest(given, self.token(service).encode()):
            raise Unauthenticated("this port is for members of the mesh", reason="NOT_A_MEMBER")

    def router_proof(self, worker_nonce: bytes, router_nonce: bytes) -> bytes:
        """What a router answers to a worker's Hello."""
        return self._mac(b"router", worker_nonce, router_nonce)

    def worker_proof(self, worker_nonce: bytes, router_nonce: bytes, incarnation: int) -> bytes:
        """What a worker answers to a router's Challenge."""
        return self._mac(b"worker", router_nonce, worker_nonce, incarnation.to_bytes(8, "little"))

    def _mac(self, *fields: bytes) -> bytes:
        return hmac.new(self._secret, frame(b"headrace-mesh-v1", *fields), hashlib.sha256).digest()


def new_nonce() -> bytes:
    """Fresh random bytes for one handshake."""
    return secrets.token_bytes(NONCE_BYTES)


def same(expected: bytes, given: bytes) -> bool:
    """Compares two proofs in constant time."""
    return hmac.compare_digest(expected, given)


def frame(*fields: bytes) -> bytes:
    """Joins fields so that no two different lists of fields give the same bytes."""
    return b"".join([len(field).to_bytes(8, "little") + field for field in fields])


def read_secret(path: Path) -> bytes:
    """Bytes of a secret file: hex digits are decoded, anything else is taken as it is."""
    content = path.read_bytes().strip()
    try:
        return bytes.fromhex(content.decode("ascii"))
    except ValueError:
        return content


def write_new_secret(path: Path, size: int = 32) -> None:
    """Writes `size` random bytes as hex, readable by the owner alone; leaves an existing file as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_private_once(path, secrets.token_hex(size) + "\n")


def write_private_once(path: Path, text: str) -> None:
    """Creates the file whole and mode 0600, or leaves the one that is there; safe between processes."""
    if path.exists():
        return
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        os.link(temporary, path)  # fails when another process was first
    except FileExistsError:
        pass
    finally:
        os.unlink(temporary)
