"""Values of options that no request can carry."""

from __future__ import annotations

from math import inf, nan
from typing import Any

import pytest
from headrace.addresses import addresses_in
from headrace.client import Headrace, build_request


@pytest.mark.parametrize("seconds", [inf, -inf, nan, 1e300])
def test_a_deadline_that_is_no_time_is_refused_by_name(seconds: float) -> None:
    with pytest.raises(ValueError, match=r"^completion_deadline_s: "):
        build_request("x", completion_deadline_s=seconds)


@pytest.mark.parametrize(("option", "allowed"), [("latency_class", "interactive"), ("cache_scope", "tenant")])
def test_a_name_that_nothing_has_is_refused_with_those_that_are(option: str, allowed: str) -> None:
    with pytest.raises(ValueError, match=rf"^{option}: 'quick' is not one of {allowed}, "):
        build_request("x", **{option: "quick"})


@pytest.mark.parametrize(
    ("message", "wrong"),
    [
        ({"role": "user"}, r"messages\[1\].content: text is needed, not None"),
        ({"role": "user", "content": None}, r"messages\[1\].content: text is needed, not None"),
        ({"role": "user", "content": [{"type": "text"}]}, r"messages\[1\].content: text is needed, not \[{"),
        ({"content": "x"}, r"messages\[1\].role: text is needed, not None"),
        (("user",), r"messages\[1\].content: text is needed, not None"),
        (
            {"role": "user", "content": "x", "name": "me"},
            r"messages\[1\].name: a message has role and content",
        ),
        ("user", r"messages\[1\]: 'user' is no message with role and content"),
        ({"role": "user", "content": "\ud800"}, r"messages\[1\]: .*surrogates"),
    ],
)
def test_a_message_without_its_parts_is_refused_by_field(message: Any, wrong: str) -> None:
    with pytest.raises(ValueError, match=f"^{wrong}"):
        build_request(messages=[("system", ""), message])


def test_an_option_that_does_not_exist_is_refused_with_the_nearest_one_or_all() -> None:
    with pytest.raises(TypeError, match=r"^max_tokenz is no option; did you mean max_tokens"):
        build_request("x", max_tokenz=3)
    with pytest.raises(TypeError, match=r"^zzz is no option; there are cache_scope, .*, user$"):
        build_request("x", zzz=3)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1:70000",
        "localhost",
        "",
        " , ",
        "http://127.0.0.1:50051",
        "a:1,b",
        "a:0",
        "unix:",
        "::1:50051",
    ],
)
def test_what_is_no_address_is_refused_and_nothing_is_sent_elsewhere(address: str) -> None:
    with pytest.raises(
        ValueError, match=r"^address .*: write host:port, with a port of 1 to 65535, or unix:path"
    ):
        Headrace(address)


def test_several_addresses_may_have_spaces_and_a_comma_too_many() -> None:
    text = "a-b.c:1, [::1]:50051,dns:///router:50051,unix:/run/mesh.sock,"
    assert addresses_in(text) == ["a-b.c:1", "[::1]:50051", "dns:///router:50051", "unix:/run/mesh.sock"]
