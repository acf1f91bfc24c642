"""What one tenant may have in encoding at one time."""

import pytest

from services.common.errors import QuotaExceeded
from services.router.encoding import InEncoding


def test_a_tenant_beyond_its_bytes_is_refused_and_others_are_not() -> None:
    in_encoding = InEncoding(100)
    with in_encoding.hold(b"a", 60):
        with pytest.raises(QuotaExceeded), in_encoding.hold(b"a", 41):
            pass
        with in_encoding.hold(b"a", 40), in_encoding.hold(b"b", 100):
            pass


def test_one_text_beyond_the_bound_is_let_in_alone() -> None:
    in_encoding = InEncoding(100)
    with in_encoding.hold(b"a", 500), pytest.raises(QuotaExceeded), in_encoding.hold(b"a", 1):
        pass


def test_what_ends_is_given_back_also_when_it_fails() -> None:
    in_encoding = InEncoding(100)
    for _ in range(2):
        with pytest.raises(RuntimeError), in_encoding.hold(b"a", 100):
            raise RuntimeError
    with in_encoding.hold(b"a", 100):
        pass
