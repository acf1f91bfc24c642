from __future__ import annotations

import json
from pathlib import Path

import pytest
from headrace.v1 import session_pb2 as pb

from services.common.members import MeshSecret, new_nonce
from services.common.models import ModelDirectory
from services.worker.session.handshake import FalseRouter, Handshake, Identity
from services.worker.session.job import Job
from tests.support.session_engine import DESCRIPTION

MESH = MeshSecret(b"m" * 32)


@pytest.fixture
def identity(tmp_path: Path) -> Identity:
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 50}))
    (tmp_path / "tokenizer.json").write_text("{}")
    return Identity("worker-1", 2**64 - 1, DESCRIPTION, ModelDirectory(tmp_path, "fake"), {"pool": "chat"})


def challenge(hello: pb.Hello, mesh: MeshSecret = MESH) -> tuple[bytes, pb.RouterFrame]:
    nonce = new_nonce()
    mac = mesh.router_proof(hello.nonce, nonce)
    return nonce, pb.RouterFrame(number=1, challenge=pb.Challenge(nonce=nonce, mac=mac))


def test_hello_says_who_the_worker_is_and_what_it_holds(identity: Identity) -> None:
    held = Job(9, pb.Submit(request_id="r", attempt=2, next_index=7, slot=3))
    frame = Handshake(identity, MESH).hello([held])
    hello = frame.hello
    assert (frame.number, hello.protocol_version, hello.worker_id) == (1, 1, "worker-1")
    assert (hello.incarnation, hello.model, hello.engine) == (2**64 - 1, "fake", "fake")
    assert (hello.kv_spec.block_tokens, hello.kv_spec.blocks) == (64, 64)
    assert (hello.kv_spec.max_sequences, hello.kv_spec.max_tokens) == (16, 1024)
    assert list(hello.capabilities) == ["logprobs", "prefix_cache"]
    assert len(hello.digests.tokenizer) == len(hello.digests.numerics) == len(hello.nonce) == 32
    assert dict(hello.labels) == {"pool": "chat"}
    assert list(hello.held) == [pb.HeldRequest(request_id="r", attempt=2, next_index=7, slot=3, handle=9)]


def test_both_sides_prove_themselves(identity: Identity) -> None:
    handshake = Handshake(identity, MESH)
    hello = handshake.hello([]).hello
    nonce, frame = challenge(hello)
    proof = handshake.prove(frame)
    assert proof.number == 2
    assert proof.proof.mac == MESH.worker_proof(hello.nonce, nonce, 2**64 - 1)
    welcome = pb.Welcome(router_id="r")
    assert handshake.welcome(pb.RouterFrame(welcome=welcome)) == welcome


def test_a_router_with_another_secret_gets_no_proof(identity: Identity) -> None:
    handshake = Handshake(identity, MESH)
    _, frame = challenge(handshake.hello([]).hello, MeshSecret(b"x" * 32))
    with pytest.raises(FalseRouter):
        handshake.prove(frame)


def test_a_recorded_challenge_is_worth_nothing(identity: Identity) -> None:
    _, frame = challenge(Handshake(identity, MESH).hello([]).hello)
    with pytest.raises(FalseRouter):
        Handshake(identity, MESH).prove(frame)


@pytest.mark.parametrize("frame", [pb.RouterFrame(), pb.RouterFrame(challenge=pb.Challenge(nonce=b"short"))])
def test_no_challenge_is_no_router(identity: Identity, frame: pb.RouterFrame) -> None:
    handshake = Handshake(identity, MESH)
    handshake.hello([])
    with pytest.raises(FalseRouter):
        handshake.prove(frame)
    with pytest.raises(FalseRouter):
        handshake.welcome(frame)
