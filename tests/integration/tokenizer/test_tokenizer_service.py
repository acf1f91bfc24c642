"""The tokenizer as a real process."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from headrace.v1 import tokenizer_pb2 as pb
from headrace.v1 import tokenizer_pb2_grpc, types_pb2
from tokenizers import Tokenizer

from services.common import transport
from services.common.members import MeshSecret, write_new_secret
from tests.support.mesh import Process, serving
from tests.support.ports import free_port
from tests.support.tiny_tokenizer import write_tiny_tokenizer

LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% set c = a * b %}{% endfor %}{% endfor %}"


class Served:
    """A tokenizer process and a member's stub."""

    def __init__(self, process: Process, channel: Any, secret: MeshSecret, model: Path) -> None:
        self.process, self.model = process, model
        self.stub = tokenizer_pb2_grpc.TokenizerServiceStub(channel)
        self.member = secret.metadata("tokenizer")
        self.reference = Tokenizer.from_file(str(model / "tokenizer.json"))

    async def encode(self, *items: pb.EncodeItem, **fields: Any) -> pb.EncodeResponse:
        request = pb.EncodeRequest(items=items, **fields)
        reply: pb.EncodeResponse = await self.stub.Encode(request, metadata=self.member)
        return reply


def write_model(directory: Path, template: str | None = None) -> None:
    write_tiny_tokenizer(directory)
    config = {"vocab_size": 512, "max_position_embeddings": 2048, "eos_token_id": 2}
    (directory / "config.json").write_text(json.dumps(config))
    if template is not None:
        (directory / "chat_template.jinja").write_text(template)


async def start(directory: Path, template: str | None = None, **settings: str) -> tuple[Process, Served]:
    write_model(directory / "model", template)
    write_new_secret(directory / "mesh.secret")
    address = f"127.0.0.1:{free_port()}"
    environment = {
        "HEADRACE_MESH_SECRET_FILE": str(directory / "mesh.secret"),
        "HEADRACE_TOKENIZER_LISTEN": address,
        "HEADRACE_TOKENIZER_MODEL": str(directory / "model"),
        **{f"HEADRACE_TOKENIZER_{name.upper()}": value for name, value in settings.items()},
    }
    process = Process("tokenizer", "tokenizer", directory, environment)
    channel = transport.channel(address, transport.Tls())
    await serving(process, channel)
    secret = MeshSecret.read(directory / "mesh.secret")
    return process, Served(process, channel, secret, directory / "model")


@pytest_asyncio.fixture(scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    process, running = await start(tmp_path_factory.mktemp("tokenizer"))
    yield running
    process.popen.kill()
    process.popen.wait()


@pytest_asyncio.fixture
async def looping(tmp_path: Path) -> AsyncIterator[Served]:
    process, running = await start(tmp_path, LOOP, item_timeout_s="2", processes="2")
    yield running
    process.popen.kill()
    process.popen.wait()


@pytest_asyncio.fixture
async def crowded(tmp_path: Path) -> AsyncIterator[Served]:
    process, running = await start(tmp_path, LOOP, item_timeout_s="600", processes="2")
    yield running
    process.popen.kill()
    process.popen.wait()


def text(content: str, **fields: Any) -> pb.EncodeItem:
    return pb.EncodeItem(text=content, **fields)


def chat(content: str) -> pb.EncodeItem:
    turn = types_pb2.ChatMessage(role="user", content=content)
    return pb.EncodeItem(chat=types_pb2.ChatMessages(messages=[turn]))


async def test_ids_are_those_of_the_reference(served: Served) -> None:
    texts = ["A mill wheel", "", "日本語 🙂", "x" * 5000, "def f(x):\n\treturn x ** 2"]
    reply = await served.encode(*map(text, texts))
    assert [list(item.ids) for item in reply.items] == [served.reference.encode(each).ids for each in texts]


async def test_a_conversation_goes_through_the_models_template(served: Served) -> None:
    reply = await served.encode(chat("hello"))
    expected = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert served.reference.decode(list(reply.items[0].ids), skip_special_tokens=False) == expected


async def test_a_bad_item_fails_alone(served: Served) -> None:
    empty_chat = pb.EncodeItem(chat=types_pb2.ChatMessages())
    reply = await served.encode(text("long " * 100, max_tokens=5), text("good"), empty_chat)
    assert reply.items[0].failure.reason == pb.ENCODE_FAILURE_REASON_TOO_LONG
    assert list(reply.items[1].ids) == served.reference.encode("good").ids


@pytest.mark.parametrize("scope", [b"", b"scope-of-a-tenan"])
async def test_a_repeated_encoding_is_the_same(served: Served, scope: bytes) -> None:
    item = text("the same long text " * 100)
    replies = [await served.encode(item, scope_digest=scope) for _ in range(3)]
    assert len({tuple(reply.items[0].ids) for reply in replies}) == 1


async def test_a_conversation_is_encoded_anew_where_the_template_tells_the_time(tmp_path: Path) -> None:
    template = "{{ strftime_now('%f') }}{% for each in messages %}{{ each['content'] }}{% endfor %}"
    process, served = await start(tmp_path, template)
    try:
        item = chat("the same long question " * 100)
        replies = [await served.encode(item, scope_digest=b"scope-of-a-tenan") for _ in range(3)]
        assert len({tuple(reply.items[0].ids) for reply in replies}) > 1
        request = pb.GetTokenizerRequest()
        parts = [each async for each in served.stub.GetTokenizer(request, metadata=served.member)]
        assert parts[0].description.tells_time
    finally:
        process.popen.kill()
        process.popen.wait()


async def test_the_limit_holds_for_cached_encodings_too(served: Served) -> None:
    long_text = "another long text " * 100
    await served.encode(text(long_text), scope_digest=b"scope-of-a-tenan")
    reply = await served.encode(text(long_text, max_tokens=5), scope_digest=b"scope-of-a-tenan")
    assert reply.items[0].failure.reason == pb.ENCODE_FAILURE_REASON_TOO_LONG


async def test_decoding_gives_the_text_back(served: Served) -> None:
    ids = served.reference.encode("déjà vu 🎡").ids
    items = [types_pb2.TokenIds(ids=ids), types_pb2.TokenIds()]
    reply = await served.stub.Decode(pb.DecodeRequest(items=items), metadata=served.member)
    assert list(reply.texts) == ["déjà vu 🎡", ""]


async def test_the_tokenizer_arrives_whole_and_only_when_it_is_new(served: Served) -> None:
    content = (served.model / "tokenizer.json").read_bytes()
    digest = hashlib.sha256(content).digest()

    async def fetched(known: bytes) -> tuple[pb.TokenizerDescription, bytes]:
        call = served.stub.GetTokenizer(pb.GetTokenizerRequest(known_digest=known), metadata=served.member)
        parts = [part async for part in call]
        return parts[0].description, b"".join(part.chunk for part in parts[1:])

    description, file = await fetched(b"")
    assert file == content
    assert description.digests.tokenizer == digest
    assert (description.vocab_size, description.context_length, description.chat) == (512, 2048, True)
    assert (await fetched(digest))[1] == b""


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (pb.EncodeRequest(items=[pb.EncodeItem()]), grpc.StatusCode.INVALID_ARGUMENT),
        (pb.EncodeRequest(items=[text("x")] * 1025), grpc.StatusCode.INVALID_ARGUMENT),
        (pb.EncodeRequest(model="other", items=[text("x")]), grpc.StatusCode.NOT_FOUND),
    ],
    ids=["nothing to encode", "too many items", "another model"],
)
async def test_a_wrong_request_is_refused(
    served: Served, request_: pb.EncodeRequest, code: grpc.StatusCode
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await served.stub.Encode(request_, metadata=served.member)
    assert failed.value.code() is code


async def test_a_looping_template_ends_at_its_deadline_and_takes_nobody_along(looping: Served) -> None:
    reply = await looping.encode(chat("hello"), text("good"), chat("again"))
    assert reply.items[0].failure.reason == pb.ENCODE_FAILURE_REASON_TIMEOUT
    assert list(reply.items[1].ids) == looping.reference.encode("good").ids
    assert reply.items[2].failure.reason == pb.ENCODE_FAILURE_REASON_TIMEOUT
    after = await looping.encode(text("still here"))
    assert list(after.items[0].ids) == looping.reference.encode("still here").ids


async def test_a_chat_is_encoded_while_huge_ones_of_another_tenant_are_under_way(crowded: Served) -> None:
    """Each huge one loops in its template until the test ends, so whatever is answered was not behind it."""
    huge = [
        asyncio.ensure_future(crowded.encode(chat("x" * 40_000), tenant_tag=b"uploads")) for _ in range(4)
    ]
    for _ in range(20):
        reply = await crowded.encode(text("hello"), tenant_tag=b"chats")
        assert list(reply.items[0].ids) == crowded.reference.encode("hello").ids
    assert not any(each.done() for each in huge)
    for each in huge:
        each.cancel()


async def test_a_text_that_is_too_long_leaves_its_process_alone(served: Served) -> None:
    words = "the wheel turns " * 10_000
    reply = await served.encode(text(words, max_tokens=2048), text(words, max_tokens=1_000_000))
    assert reply.items[0].failure.reason == pb.ENCODE_FAILURE_REASON_TOO_LONG
    assert list(reply.items[1].ids) == served.reference.encode(words).ids


async def test_a_missing_model_is_one_line(tmp_path: Path) -> None:
    write_new_secret(tmp_path / "mesh.secret")
    environment = {
        "HEADRACE_MESH_SECRET_FILE": str(tmp_path / "mesh.secret"),
        "HEADRACE_TOKENIZER_MODEL": str(tmp_path / "nowhere"),
    }
    process = Process("tokenizer", "tokenizer", tmp_path, environment)
    assert await process.ended() == 1
    assert [line for line in process.tail().splitlines() if line.startswith("headrace: ")]
