"""Keys open the public port; tenants share nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from headrace.v1 import router_pb2

from services.common import identity
from tests.support.generating import generate, request
from tests.support.mesh import Mesh
from tests.support.waiting import eventually_async

PROMPT = "A headrace brings water to the wheel. " * 12


class Tenanted:
    """A mesh with two tenants and their credentials."""

    def __init__(self, mesh: Mesh, keys: dict[str, str], keys_file: Path) -> None:
        self.mesh, self._keys, self.keys_file = mesh, keys, keys_file

    def credentials(self, tenant: str) -> dict[str, Any]:
        return {"metadata": (("authorization", f"Bearer {self._keys[tenant]}"),)}


@pytest_asyncio.fixture(scope="module")
async def tenanted(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Tenanted]:
    directory = tmp_path_factory.mktemp("tenants")
    keys_file, tenants_file = directory / "keys.toml", directory / "tenants.toml"
    keys = {tenant: identity.create_key(keys_file, tenant) for tenant in ("acme", "globex")}
    tenants_file.write_text('[tenants.globex]\nmax_class = "batch"\n')
    files = {"keys_file": str(keys_file), "tenants_file": str(tenants_file)}
    async with Mesh(directory, tiny_model, router=files, worker={"dtype": "float32"}) as mesh:
        await mesh.add_worker()
        yield Tenanted(mesh, keys, keys_file)


@pytest.mark.parametrize(
    "metadata",
    [(), (("authorization", "Bearer hr_000000000000_" + "0" * 64),), (("authorization", "Bearer x"),)],
    ids=["no key", "an unknown key", "no key's form"],
)
async def test_without_a_good_key_nothing_is_served(tenanted: Tenanted, metadata: tuple[Any, ...]) -> None:
    stub = tenanted.mesh.stub
    calls = [
        stub.GenerateUnary(request("water"), metadata=metadata),
        stub.ListModels(router_pb2.ListModelsRequest(), metadata=metadata),
        stub.CountTokens(router_pb2.CountTokensRequest(text="water"), metadata=metadata),
    ]
    for call in calls:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call
        assert failed.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_prefix_is_reused_within_a_tenant_and_never_across(tenanted: Tenanted) -> None:
    async def cached_tokens(tenant: str, ending: str) -> int:
        stream = await generate(
            tenanted.mesh.stub, request(PROMPT + ending, max_tokens=2), **tenanted.credentials(tenant)
        )
        assert stream.finished is not None
        assert not stream.finished.cached_response
        return int(stream.finished.usage.cached_tokens)

    assert await cached_tokens("acme", "one") == 0
    assert await cached_tokens("acme", "two") >= 64
    assert await cached_tokens("globex", "three") == 0
    assert await cached_tokens("globex", "four") >= 64


async def test_an_answer_is_reused_within_a_tenant_and_never_across(tenanted: Tenanted) -> None:
    wanted = request("Where does the water go?", max_tokens=5)

    async def from_cache(tenant: str) -> bool:
        stream = await generate(tenanted.mesh.stub, wanted, **tenanted.credentials(tenant))
        assert stream.finished is not None
        return bool(stream.finished.cached_response)

    await eventually_async(lambda: from_cache("acme"), "the answer is reused")
    assert not await from_cache("globex")


async def test_a_tenant_is_held_to_its_highest_class(tenanted: Tenanted) -> None:
    for tenant, expected in (("acme", 1), ("globex", 3)):
        wanted = request(ids=[7, 8], max_tokens=2, latency_class=1)
        stream = await generate(tenanted.mesh.stub, wanted, **tenanted.credentials(tenant))
        assert stream.finished is not None
        assert stream.finished.latency_class == expected


async def test_a_new_key_opens_and_a_revoked_one_closes_without_a_restart(tenanted: Tenanted) -> None:
    key = identity.create_key(tenanted.keys_file, "initech")
    metadata = (("authorization", f"Bearer {key}"),)

    async def code() -> grpc.StatusCode:
        try:
            await tenanted.mesh.stub.ListModels(router_pb2.ListModelsRequest(), metadata=metadata)
        except grpc.aio.AioRpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    async def opened() -> bool:
        return await code() is grpc.StatusCode.OK

    async def closed() -> bool:
        return await code() is grpc.StatusCode.UNAUTHENTICATED

    await eventually_async(opened, "the new key opens")
    identity.revoke_key(tenanted.keys_file, key.split("_")[1])
    await eventually_async(closed, "the revoked key closes")
