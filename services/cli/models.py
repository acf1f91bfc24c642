"""`headrace models`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from services.cli import options, output

if TYPE_CHECKING:
    from headrace.v1 import router_pb2


def models(
    address: options.Address = options.DEFAULT_ADDRESS,
    api_key: options.ApiKey = None,
    tls: options.UseTls = False,
    tls_authority: options.Authority = None,
    timeout: options.TimeoutS = 10.0,
    as_json: options.Json = False,
) -> None:
    """List the models that can be asked for now."""
    from google.protobuf.json_format import MessageToDict

    async def ask() -> list[router_pb2.Model]:
        async with options.connect(address, api_key, tls, tls_authority) as mesh:
            return await mesh.models(timeout_s=timeout)

    found = asyncio.run(ask())
    if as_json:
        return output.json_line([MessageToDict(each, preserving_proto_field_name=True) for each in found])
    columns = ("Model", "Context", "Vocabulary", "Workers", "Chat", "Capabilities")
    output.table(columns, map(_row, found), spare=("Vocabulary", "Capabilities"))


def _row(model: router_pb2.Model) -> tuple[object, ...]:
    chat = "yes" if model.chat else "no"
    can = ", ".join(model.capabilities)
    return model.name, model.context_length, model.vocab_size, model.workers, chat, can
