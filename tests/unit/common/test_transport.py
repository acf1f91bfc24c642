from __future__ import annotations

import pytest

from services.common import transport


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.9.9.9:1", "localhost:1", "[::1]:1", "unix:/tmp/x"])
def test_loopback_needs_no_encryption(address: str) -> None:
    transport.check_listener(address, transport.Tls(), insecure=False)


@pytest.mark.parametrize("address", ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "router:1"])
def test_plain_text_off_loopback_must_be_asked_for(address: str) -> None:
    with pytest.raises(transport.BindError, match="insecure"):
        transport.check_listener(address, transport.Tls(), insecure=False)
    transport.check_listener(address, transport.Tls(), insecure=True)


async def test_a_taken_port_is_named() -> None:
    first, second = transport.server(), transport.server()
    port = transport.listen(first, "127.0.0.1:0", transport.Tls(), insecure=False)
    with pytest.raises(transport.BindError, match=str(port)):
        transport.listen(second, f"127.0.0.1:{port}", transport.Tls(), insecure=False)
