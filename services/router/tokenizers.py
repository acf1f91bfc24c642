"""The pool of tokenizer services: any of them will do, another when one is away, UNAVAILABLE with none."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import grpc
from headrace.v1 import tokenizer_pb2, tokenizer_pb2_grpc

from services.common import errors, transport
from services.common.members import MeshSecret
from services.common.transport import Tls

if TYPE_CHECKING:
    from headrace.v1.tokenizer_pb2_grpc import TokenizerServiceAsyncStub

SERVICE = "tokenizer"
RETRY_S = 1.0
_ELSEWHERE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
_CONNECTED = grpc.ChannelConnectivity.READY
_FETCH_TIMEOUT_S = 60.0
Reply = TypeVar("Reply")


class TokenizerFile(NamedTuple):
    """A tokenizer as the service describes it, and its file."""

    description: tokenizer_pb2.TokenizerDescription
    content: bytes


class TokenizerPool:
    """One channel an address; calls take turns among those that are there."""

    def __init__(self, addresses: Sequence[str], tls: Tls, mesh: MeshSecret) -> None:
        self._channels = [transport.channel(address, tls) for address in addresses]
        self._stubs = [tokenizer_pb2_grpc.TokenizerServiceStub(channel) for channel in self._channels]
        self._metadata = mesh.metadata(SERVICE)
        self._turn = 0

    async def encode(
        self, request: tokenizer_pb2.EncodeRequest, timeout_s: float
    ) -> tokenizer_pb2.EncodeResponse:
        """Encodes a batch.

        Raises:
            NotFound: no such model. Unavailable: no tokenizer service is there.
            DeadlineExceeded: not within `timeout_s`.
        """

        async def call(stub: TokenizerServiceAsyncStub) -> tokenizer_pb2.EncodeResponse:
            pending = stub.Encode(request, timeout=timeout_s, metadata=self._metadata)
            try:
                reply: tokenizer_pb2.EncodeResponse = await pending
                return reply
            finally:
                pending.cancel()

        return await self._anywhere(call, request.model)

    async def fetch(self, model: str | None, known_digest: bytes = b"") -> TokenizerFile:
        """Reads a model's tokenizer; of the only model when none is named. Raises as `encode`.

        The file stays empty when it is the one with `known_digest`.
        """

        async def call(stub: TokenizerServiceAsyncStub) -> TokenizerFile:
            request = tokenizer_pb2.GetTokenizerRequest(model=model, known_digest=known_digest)
            parts = stub.GetTokenizer(request, timeout=_FETCH_TIMEOUT_S, metadata=self._metadata)
            description, content = tokenizer_pb2.TokenizerDescription(), bytearray()
            try:
                async for part in parts:
                    if part.HasField("description"):
                        description = part.description
                    content += part.chunk
                return TokenizerFile(description, bytes(content))
            finally:
                parts.cancel()

        return await self._anywhere(call, model or "")

    async def close(self) -> None:
        """Closes the channels."""
        for channel in self._channels:
            await channel.close()

    async def _anywhere(
        self, call: Callable[[TokenizerServiceAsyncStub], Awaitable[Reply]], model: str
    ) -> Reply:
        for position in self._order():
            try:
                return await call(self._stubs[position])
            except grpc.aio.AioRpcError as error:
                if error.code() not in _ELSEWHERE:
                    raise _translated(error, model) from None
        raise errors.Unavailable("no tokenizer service is there", reason="NO_TOKENIZER", retry_s=RETRY_S)

    def _order(self) -> list[int]:
        """All services, each first in its turn, but those without a connection last."""
        self._turn += 1
        turns = [(self._turn + position) % len(self._stubs) for position in range(len(self._stubs))]
        return sorted(turns, key=self._is_away)

    def _is_away(self, position: int) -> bool:
        """Whether there is no connection now; it is sought then."""
        return self._channels[position].get_state(try_to_connect=True) is not _CONNECTED


def _translated(error: grpc.aio.AioRpcError, model: str) -> errors.HeadraceError:
    if error.code() is grpc.StatusCode.NOT_FOUND:
        return errors.NotFound(f"the model {model!r} is not served", kind="model", name=model)
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return errors.DeadlineExceeded("encoding took too long", reason="ENCODE_TIMEOUT")
    if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return errors.Overloaded("the tokenizer service is overloaded", retry_s=RETRY_S)
    if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
        return errors.InvalidArgument(errors.FieldViolation("model", error.details() or "cannot be used"))
    return errors.Internal("the tokenizer service failed", reason="TOKENIZER_FAILED")
