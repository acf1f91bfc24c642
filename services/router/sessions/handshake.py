"""Both sides prove that they know the mesh secret; then digests are compared. Strangers learn nothing."""

from __future__ import annotations

from headrace.v1 import session_pb2, types_pb2

from services.common.errors import FailedPrecondition, Unauthenticated
from services.common.members import NONCE_BYTES, MeshSecret, new_nonce, same

PROTOCOL_VERSION = 1
SERVED_VERSIONS = (PROTOCOL_VERSION,)
_DIGESTS = ("tokenizer", "template")
MAX_NAME = 128


class Handshake:
    """One worker's way in: `challenge`, then `admit`."""

    def __init__(self, mesh: MeshSecret) -> None:
        self._mesh = mesh
        self._nonce = new_nonce()
        self.hello = session_pb2.Hello()

    def challenge(self, frame: session_pb2.WorkerFrame) -> session_pb2.RouterFrame:
        """The answer to the first frame. Raises Unauthenticated when that is no Hello."""
        if not frame.HasField("hello") or len(frame.hello.nonce) != NONCE_BYTES:
            raise _stranger()
        self.hello = frame.hello
        proof = self._mesh.router_proof(self.hello.nonce, self._nonce)
        return session_pb2.RouterFrame(
            number=1,
            challenge=session_pb2.Challenge(nonce=self._nonce, mac=proof),
            acknowledged_frame=frame.number,
        )

    def admit(self, frame: session_pb2.WorkerFrame) -> session_pb2.Hello:
        """Checks the second frame and what Hello said.

        Raises:
            Unauthenticated: no proof, or a wrong one.
            FailedPrecondition: a protocol, or a description of itself, that cannot be served.
        """
        expected = self._mesh.worker_proof(self.hello.nonce, self._nonce, self.hello.incarnation)
        if not same(expected, frame.proof.mac):
            raise _stranger()
        fault = _fault(self.hello)
        if fault is not None:
            raise FailedPrecondition(f"Hello: {fault}")
        return self.hello


def check_digests(hello: session_pb2.Hello, known: types_pb2.ModelDigests) -> None:
    """Raises FailedPrecondition, naming the digest in which worker and tokenizer service differ."""
    for name in _DIGESTS:
        theirs, ours = getattr(hello.digests, name), getattr(known, name)
        if theirs != ours:
            raise FailedPrecondition(
                f"the {name} of model {hello.model!r} differs: worker {hello.worker_id} has "
                f"{theirs.hex()[:16] or 'none'}, the tokenizer service {ours.hex()[:16] or 'none'}",
                reason=f"{name.upper()}_MISMATCH",
            )


def _fault(hello: session_pb2.Hello) -> str | None:
    rules = (
        (
            hello.protocol_version in SERVED_VERSIONS,
            f"protocol version {hello.protocol_version} is not served",
        ),
        (_is_name(hello.worker_id), f"worker_id is not 1 to {MAX_NAME} printable ASCII characters"),
        (_is_name(hello.model), f"model is not 1 to {MAX_NAME} printable ASCII characters"),
        (hello.kv_spec.max_sequences > 0, "kv_spec.max_sequences is 0"),
        (hello.kv_spec.max_tokens > 0, "kv_spec.max_tokens is 0"),
    )
    return next((message for fine, message in rules if not fine), None)


def _is_name(name: str) -> bool:
    """Names stand in logs, metrics and trailers."""
    return 0 < len(name) <= MAX_NAME and name.isascii() and name.isprintable()


def _stranger() -> Unauthenticated:
    return Unauthenticated("this port is for members of the mesh", reason="NOT_A_MEMBER")
