import hypothesis.strategies as st
import pytest
from hypothesis import given

from services.tokenizer.text.encoder import EncoderStatistics
from services.tokenizer.text.errors import InvalidText, TemplateFailed, TextError, TooLong
from services.tokenizer.text.items import Outcome
from services.tokenizer.text.wire import LENGTH, Refusal, Reply, pack_reply, unpack_reply

errors = st.builds(
    lambda kind, message: kind(message),
    st.sampled_from([TextError, InvalidText, TemplateFailed, TooLong]),
    st.text(max_size=20),
)
outcomes = st.lists(st.one_of(st.lists(st.integers(0, 2**32 - 1), max_size=8), errors), max_size=6)
STATISTICS = EncoderStatistics(True, "", 3, 2, 1)


def comparable(outcome: Outcome) -> object:
    return outcome if isinstance(outcome, list) else (type(outcome), str(outcome))


@given(outcomes)
def test_a_reply_arrives_as_it_was_sent(sent: list[Outcome]) -> None:
    frame = pack_reply(Reply(sent, STATISTICS))
    assert LENGTH.unpack_from(frame) == (len(frame) - LENGTH.size,)
    arrived = unpack_reply(frame[LENGTH.size :])
    assert isinstance(arrived, Reply)
    assert arrived.statistics == STATISTICS
    assert list(map(comparable, arrived.outcomes)) == list(map(comparable, sent))


def test_a_refusal_arrives_with_its_reason() -> None:
    assert unpack_reply(pack_reply(Refusal("no"))[LENGTH.size :]) == Refusal("no")


@pytest.mark.parametrize("kind", ["SystemExit", "CannotStart", "os.system"])
def test_a_process_cannot_name_an_error_of_another_kind(kind: str) -> None:
    body = pack_reply(Reply([TextError("x")], STATISTICS))[LENGTH.size :].replace(b"TextError", kind.encode())
    header_bytes = int.from_bytes(body[:4], "little") + len(kind) - len("TextError")
    arrived = unpack_reply(header_bytes.to_bytes(4, "little") + body[4:])
    assert isinstance(arrived, Reply)
    assert type(arrived.outcomes[0]) is TextError
