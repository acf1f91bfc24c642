"""Both sides prove that they know the mesh secret; a worker does not hand its GPU to a false router."""

from __future__ import annotations

from collections.abc import Iterable

from headrace.v1 import session_pb2, types_pb2

from services.common.members import NONCE_BYTES, MeshSecret, new_nonce, same
from services.common.models import ModelDirectory
from services.worker.engine.base import EngineDescription
from services.worker.session.held import tell_held
from services.worker.session.job import Job

PROTOCOL_VERSION = 1


class FalseRouter(Exception):
    """Whoever answered does not know the mesh secret, or does not speak the protocol."""


class Identity:
    """What a worker says of itself in every Hello."""

    def __init__(
        self,
        worker_id: str,
        incarnation: int,
        engine: EngineDescription,
        model: ModelDirectory,
        labels: dict[str, str],
    ) -> None:
        self.worker_id = worker_id
        self.incarnation = incarnation
        spec = engine.spec
        self._hello = session_pb2.Hello(
            protocol_version=PROTOCOL_VERSION,
            worker_id=worker_id,
            incarnation=incarnation,
            model=engine.model,
            digests=types_pb2.ModelDigests(
                weights=engine.weights_digest,
                tokenizer=model.tokenizer_digest,
                template=model.template_digest,
                numerics=engine.numerics_id,
            ),
            engine=engine.engine,
            engine_version=engine.engine_version,
            device=engine.device,
            kv_spec=session_pb2.KvSpec(
                block_tokens=spec.block_size,
                blocks=spec.num_blocks,
                max_sequences=spec.max_seqs,
                max_tokens=spec.max_len,
            ),
            capabilities=_capabilities(engine),
            labels=labels,
            vocab_size=engine.vocab_size,
            eos_token_ids=engine.eos_ids,
            merges=True,
        )

    def hello(self, nonce: bytes, held: Iterable[Job]) -> session_pb2.Hello:
        """The Hello of one session; `held`: what is kept of the one before."""
        hello = session_pb2.Hello(nonce=nonce)
        hello.MergeFrom(self._hello)
        tell_held(hello, held)
        return hello


class Handshake:
    """The worker's way in: `hello`, then `prove`, then `welcome`."""

    def __init__(self, identity: Identity, mesh: MeshSecret) -> None:
        self._identity = identity
        self._mesh = mesh
        self._nonce = new_nonce()

    def hello(self, held: Iterable[Job]) -> session_pb2.WorkerFrame:
        """The first frame."""
        return session_pb2.WorkerFrame(number=1, hello=self._identity.hello(self._nonce, held))

    def prove(self, frame: session_pb2.RouterFrame) -> session_pb2.WorkerFrame:
        """The second frame, in answer to the Challenge. Raises FalseRouter."""
        nonce = frame.challenge.nonce
        if len(nonce) != NONCE_BYTES:
            raise FalseRouter("no challenge")
        if not same(self._mesh.router_proof(self._nonce, nonce), frame.challenge.mac):
            raise FalseRouter("it does not know the mesh secret")
        mac = self._mesh.worker_proof(self._nonce, nonce, self._identity.incarnation)
        return session_pb2.WorkerFrame(number=2, acknowledged_command=1, proof=session_pb2.Proof(mac=mac))

    def welcome(self, frame: session_pb2.RouterFrame) -> session_pb2.Welcome:
        """The Welcome that opens the session. Raises FalseRouter."""
        if not frame.HasField("welcome"):
            raise FalseRouter("no welcome")
        return frame.welcome


def _capabilities(engine: EngineDescription) -> list[str]:
    able = engine.capabilities
    named = (
        ("grammar", able.grammar),
        ("logprobs", able.logprobs),
        ("deterministic", able.deterministic),
        ("prefix_cache", able.prefix_reuse),
    )
    return [name for name, has in named if has]
