"""The commands that containers run beside the services: init, model, health."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from grpc_health.v1 import health_pb2

from services.common import lifecycle, transport
from tests.support.commands import headrace
from tests.support.tiny_tokenizer import write_tiny_tokenizer


async def test_init_gives_each_volume_only_its_own_secrets(tmp_path: Path) -> None:
    router, mesh, valkey = (tmp_path / name for name in ("router", "mesh", "valkey"))
    folders = ("--state", str(router), "--mesh", str(mesh), "--tls", str(mesh), "--valkey", str(valkey))
    outcome = await headrace("init", *folders)
    assert outcome.code == 0, outcome.err
    assert names(router) == {"master.secret", "keys.toml", "salts"}
    assert names(mesh) == {"mesh.secret", "authority.pem", "mesh.pem", "mesh.key"}
    assert names(valkey) == {"valkey.password"}


async def test_health_speaks_the_tls_of_the_mesh(tmp_path: Path) -> None:
    await headrace("init", "--state", str(tmp_path), "--tls", str(tmp_path))
    tls = transport.Tls(
        authority=tmp_path / "authority.pem", certificate=tmp_path / "mesh.pem", key=tmp_path / "mesh.key"
    )
    server, health = transport.server(), lifecycle.Health()
    health.add_to(server)
    await health.set(health_pb2.HealthCheckResponse.SERVING)
    address = f"127.0.0.1:{transport.listen(server, transport.Listener('127.0.0.1:0', tls))}"
    await server.start()
    settings = {
        "HEADRACE_MESH_TLS_AUTHORITY": str(tls.authority),
        "HEADRACE_MESH_TLS_CERTIFICATE": str(tls.certificate),
        "HEADRACE_MESH_TLS_KEY": str(tls.key),
    }
    try:
        member = await headrace("health", "--mesh", address, env=settings)
        stranger = await headrace("health", address, env=settings)
    finally:
        await server.stop(None)
    assert (member.code, member.out) == (0, "SERVING\n")
    assert stranger.code == 1


async def test_model_names_the_directory_or_what_is_wrong(tmp_path: Path) -> None:
    model = tmp_path / "model"
    write_tiny_tokenizer(model)
    (model / "config.json").write_text('{"vocab_size": 512}')
    code, out, err = await fetch(model)
    assert (code, out) == (1, "")
    assert err == f"headrace: {model} has no *.safetensors; Headrace loads weights from safetensors\n"
    (model / "model.safetensors").write_bytes(b"")
    assert await fetch(model) == (0, f"{model}\n", "")


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


async def fetch(model: Path) -> tuple[int | None, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.common.models"),
        env={**os.environ, "HEADRACE_MODEL": str(model)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()
