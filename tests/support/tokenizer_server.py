"""A TokenizerService in the test's own process, over the tiny tokenizer; really encodes."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Self

import jinja2
from headrace.v1 import tokenizer_pb2, types_pb2
from prometheus_client import CollectorRegistry

from services.common.errors import NotFound
from services.common.members import MeshSecret
from services.common.metrics import RpcMetrics
from services.common.models import ModelDirectory
from services.common.rpc import Context, Registrar
from services.common.transport import Listener, listen, server
from tests.support.tiny_tokenizer import CHAT_TEMPLATE, tiny_tokenizer

SERVICE = tokenizer_pb2.DESCRIPTOR.services_by_name["TokenizerService"]
CONTEXT = 4096


class TokenizerServer:
    """Serves one model, of `directory` if given. `failure` makes every item fail; `encoded` counts items.

    Args:
        tells_time: whether its template is said to tell the time.
    """

    def __init__(
        self,
        mesh: MeshSecret,
        *,
        model: str = "tiny",
        context: int = CONTEXT,
        directory: Path | None = None,
        tells_time: bool = False,
    ) -> None:
        self.tokenizer = tiny_tokenizer()
        self.file = self.tokenizer.to_str().encode()
        self.digests = types_pb2.ModelDigests(
            tokenizer=hashlib.sha256(self.file).digest(),
            template=hashlib.sha256(CHAT_TEMPLATE.encode()).digest(),
        )
        if directory is not None:  # written by write_tiny_tokenizer: the same tokenizer in other bytes
            found = ModelDirectory(directory, model)
            self.file = found.tokenizer_json
            self.digests.tokenizer, self.digests.template = found.tokenizer_digest, found.template_digest
        self.model = model
        self.context = context
        self._tells_time = tells_time
        self.failure: tokenizer_pb2.EncodeFailure | None = None
        self.encoded = 0
        self.scopes: list[bytes] = []
        self.tenants: list[bytes] = []
        self.address = ""
        self._mesh = mesh
        self._server = server()

    async def start(self) -> Self:
        """Opens the listener."""
        registrar = Registrar(self._server, RpcMetrics(CollectorRegistry()), self._mesh)
        registrar.add(SERVICE, self, members_only="tokenizer")
        port = listen(self._server, Listener("127.0.0.1:0"))
        await self._server.start()
        self.address = f"127.0.0.1:{port}"
        return self

    async def stop(self) -> None:
        """Closes it."""
        await self._server.stop(0)

    def ids(self, text: str) -> list[int]:
        """What a text encodes to."""
        found: list[int] = self.tokenizer.encode(text).ids
        return found

    def text(self, ids: list[int]) -> str:
        """What ids decode to."""
        found: str = self.tokenizer.decode(ids)
        return found

    async def Encode(self, request: tokenizer_pb2.EncodeRequest, _: Context) -> tokenizer_pb2.EncodeResponse:
        """Encodes."""
        self._check(request.model)
        self.encoded += len(request.items)
        self.scopes.append(request.scope_digest)
        self.tenants.append(request.tenant_tag)
        items = [self._encode(item) for item in request.items]
        return tokenizer_pb2.EncodeResponse(items=items, digests=self.digests)

    async def Decode(self, request: tokenizer_pb2.DecodeRequest, _: Context) -> tokenizer_pb2.DecodeResponse:
        """Decodes."""
        return tokenizer_pb2.DecodeResponse(texts=[self.text(list(each.ids)) for each in request.items])

    async def GetTokenizer(
        self, request: tokenizer_pb2.GetTokenizerRequest, _: Context
    ) -> AsyncIterator[tokenizer_pb2.GetTokenizerResponse]:
        """The description and the file."""
        self._check(request.model)
        description = tokenizer_pb2.TokenizerDescription(
            model=self.model,
            digests=self.digests,
            file_bytes=len(self.file),
            vocab_size=self.tokenizer.get_vocab_size(),
            eos_token_ids=[2],
            context_length=self.context,
            chat=True,
            tells_time=self._tells_time,
        )
        yield tokenizer_pb2.GetTokenizerResponse(description=description)
        if request.known_digest != self.digests.tokenizer:
            yield tokenizer_pb2.GetTokenizerResponse(chunk=self.file)

    def _check(self, model: str) -> None:
        if model not in ("", self.model):
            raise NotFound("no such model", kind="model", name=model)

    def _encode(self, item: tokenizer_pb2.EncodeItem) -> tokenizer_pb2.EncodedItem:
        if self.failure is not None:
            return tokenizer_pb2.EncodedItem(failure=self.failure)
        ids = self.ids(item.text if item.HasField("text") else _rendered(item.chat))
        if item.HasField("max_tokens") and len(ids) > item.max_tokens:
            reason = tokenizer_pb2.ENCODE_FAILURE_REASON_TOO_LONG
            return tokenizer_pb2.EncodedItem(
                failure=tokenizer_pb2.EncodeFailure(reason=reason, message="too many tokens")
            )
        return tokenizer_pb2.EncodedItem(ids=ids)


def _rendered(chat: types_pb2.ChatMessages) -> str:
    messages = [{"role": each.role, "content": each.content} for each in chat.messages]
    return jinja2.Template(CHAT_TEMPLATE).render(messages=messages, add_generation_prompt=True)
