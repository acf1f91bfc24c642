"""What the tests of the text pool share."""

from pathlib import Path

from services.tokenizer.text.items import Conversation, TextSpec
from services.tokenizer.text.template import Message
from tests.support.tiny_tokenizer import CHAT_TEMPLATE, tiny_tokenizer

LOOP = "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}"
# Does as its first message says: loops, takes memory, or renders.
OBEDIENT_TEMPLATE = (
    "{% if messages[0].content == 'loop' %}" + LOOP + "{% endif %}"
    "{% if messages[0].content == 'grow' %}{{ 'x' * 10 ** 10 }}{% endif %}" + CHAT_TEMPLATE
)


def tiny_spec(template: str | None = OBEDIENT_TEMPLATE) -> TextSpec:
    """The tiny tokenizer with `template`."""
    return TextSpec(tiny_tokenizer().to_str().encode(), template, {"eos_token": "<|im_end|>"})


def saying(content: str) -> Conversation:
    """A conversation of one turn."""
    return Conversation((Message("user", content),))


def is_alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
