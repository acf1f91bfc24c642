"""What can be encoded, and the object that does it in whatever process it stands."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from services.tokenizer.text.encoder import COMPARE_EVERY, EncoderStatistics, TextEncoder
from services.tokenizer.text.errors import TemplateFailed, TextError, TooLong
from services.tokenizer.text.template import DEFAULT_MAX_CHARS, ChatTemplate, Message

if TYPE_CHECKING:
    from services.common.models import ModelDirectory


class PlainText(NamedTuple):
    """A text to encode as it is."""

    text: str
    add_special_tokens: bool = True
    max_tokens: int | None = None  # more ids than this are an error


class Conversation(NamedTuple):
    """A conversation for the model's template, which adds what is special by itself."""

    messages: tuple[Message, ...]
    add_generation_prompt: bool = True
    max_tokens: int | None = None


Item: TypeAlias = PlainText | Conversation
Outcome: TypeAlias = list[int] | TextError


class TextSpec(NamedTuple):
    """All that a process needs to encode for one model."""

    tokenizer_json: bytes
    chat_template: str | None
    special_tokens: dict[str, str]
    max_template_chars: int = DEFAULT_MAX_CHARS
    compare_every: int = COMPARE_EVERY

    @classmethod
    def of(cls, model: ModelDirectory) -> TextSpec:
        """What `model` says.

        Raises:
            ModelError: a file of it is missing or broken.
        """
        return cls(model.tokenizer_json, model.chat_template, model.special_tokens)


class ItemEncoder:
    """Encodes items one at a time, in this process."""

    def __init__(self, spec: TextSpec) -> None:
        """Load the tokenizer. The template is compiled when it is first needed: jinja2 computes constants
        while it compiles, so that takes as long as the template likes and belongs under a job's deadline.

        Raises:
            TextError: the tokenizer cannot be loaded.
        """
        self.encoder = TextEncoder(spec.tokenizer_json, compare_every=spec.compare_every)
        self._spec = spec
        self._template: ChatTemplate | TemplateFailed | None = None

    def outcome(self, item: Item) -> Outcome:
        """The ids, or why there are none."""
        try:
            ids = self._ids(item)
        except TextError as error:
            return error
        if item.max_tokens is not None and len(ids) > item.max_tokens:
            return TooLong(f"{len(ids)} tokens; at most {item.max_tokens} are allowed")
        return ids

    def statistics(self) -> EncoderStatistics:
        """The encoder's counts."""
        return self.encoder.statistics()

    def _ids(self, item: Item) -> list[int]:
        if isinstance(item, PlainText):
            return self.encoder.encode(item.text, item.add_special_tokens, item.max_tokens)
        if self._template is None:
            self._template = _compiled(self._spec)
        if isinstance(self._template, TemplateFailed):
            raise self._template
        prompt = self._template.render(item.messages, add_generation_prompt=item.add_generation_prompt)
        return self.encoder.encode(prompt, False, item.max_tokens)


def item_chars(item: Item) -> int:
    """How many characters of text an item holds."""
    if isinstance(item, PlainText):
        return len(item.text)
    return sum(len(message.role) + len(message.content) for message in item.messages)


def _compiled(spec: TextSpec) -> ChatTemplate | TemplateFailed:
    if spec.chat_template is None:
        return TemplateFailed("the model has no chat template; send plain text")
    try:
        return ChatTemplate(spec.chat_template, spec.special_tokens, max_chars=spec.max_template_chars)
    except TemplateFailed as error:
        return error
