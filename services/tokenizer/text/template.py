"""Chat templates, rendered as Hugging Face renders them, with a bound on what comes out.

A template is code from a model's directory that works on a caller's words. It runs in jinja2's immutable
sandbox: no attribute that begins with an underscore, no change to what it is given, no `range` beyond
100,000. That bounds what it reaches, not how long it runs or what it allocates: for those it runs in a
process that can be killed at a deadline and has a limit on its memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from services.tokenizer.text.errors import TemplateFailed

DEFAULT_MAX_CHARS = 8 << 20
_REASON_CHARS = 200


_NOW = "strftime_now"


def tells_time(template: str | None) -> bool:
    """Whether what a template writes may depend on when it does."""
    return template is not None and _NOW in template


class Message(NamedTuple):
    """One turn of a conversation."""

    role: str
    content: str


class ChatTemplate:
    """One compiled template."""

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str],
        *,
        max_chars: int = DEFAULT_MAX_CHARS,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        """Compile `source`.

        Args:
            special_tokens: what the template may name, such as bos_token.
            max_chars: more output than this is an error.
            now: the time that `strftime_now` tells.

        Raises:
            TemplateFailed: it does not compile.
        """
        self._special_tokens = dict(special_tokens)
        self._max_chars = max_chars
        try:
            self._template = _environment(now).from_string(source)
        except TemplateSyntaxError as error:
            raise TemplateFailed(f"the model's chat template is broken in line {error.lineno}") from error
        except Exception as error:  # jinja2 computes constants here, so anything may go wrong
            raise TemplateFailed(f"the model's chat template is broken: {type(error).__name__}") from error

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The prompt for `messages`.

        Raises:
            TemplateFailed: the template refuses them, breaks, or writes too much.
        """
        variables = {
            **self._special_tokens,
            "messages": [message._asdict() for message in messages],
            "add_generation_prompt": add_generation_prompt,
            "tools": None,
            "documents": None,
        }
        try:
            return self._bounded(variables)
        except _Refused as error:
            reason = str(error)[:_REASON_CHARS]
            raise TemplateFailed(f"the chat template refuses the conversation: {reason}") from error
        except SecurityError as error:
            raise TemplateFailed("the chat template does what the sandbox forbids") from error
        except TemplateFailed:
            raise
        except (Exception, MemoryError) as error:
            raise TemplateFailed(f"the chat template failed: {type(error).__name__}") from error

    def _bounded(self, variables: dict[str, Any]) -> str:
        pieces: list[str] = []
        left = self._max_chars
        for piece in self._template.generate(variables):
            left -= len(piece)
            if left < 0:
                raise TemplateFailed(f"the chat template writes more than {self._max_chars} characters")
            pieces.append(piece)
        return "".join(pieces)


class _Refused(TemplateError):
    """The template called raise_exception."""


class _GenerationBlocks(Extension):
    """`{% generation %}` marks an assistant's words for training; here it only encloses them."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _SafeNamespace(Namespace):
    """A namespace that takes no name from which Python's internals could be reached."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # `self` may be a name of the template's
        self, values = args[0], dict(*args[1:], **kwargs)
        for name in values:
            _require_plain(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _require_plain(name)
        super().__setitem__(name, value)


def _require_plain(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError("a namespace takes no name with an underscore first")


def _environment(now: Callable[[], datetime]) -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlocks, LoopControlExtension]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals[_NOW] = lambda form: now().strftime(form)
    environment.globals["namespace"] = _SafeNamespace
    return environment


def _refuse(reason: object) -> None:
    raise _Refused(str(reason))


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """jinja2's own filter escapes HTML, which no model was trained on."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
