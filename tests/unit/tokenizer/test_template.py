"""Chat templates: what Hugging Face renders, and nothing that a template should not do."""

from datetime import datetime
from typing import Any

import pytest

from services.common.models import ModelDirectory
from services.tokenizer.text.errors import TemplateFailed
from services.tokenizer.text.template import DEFAULT_MAX_CHARS, ChatTemplate, Message
from tests.support.tiny_tokenizer import CHAT_TEMPLATE

TALK = (
    Message("system", "Be <brief> & 'kind'."),
    Message("user", "Wie geht's? \U0001f642\n\n"),
    Message("assistant", "  Gut.  "),
    Message("user", ""),
)
# Each uses something that real templates use.
TEMPLATES = {
    "chatml": CHAT_TEMPLATE,
    "whitespace": "{%- for m in messages %}\n    {% if m.role == 'user' %}\n  {{ m.content | trim }}\n"
    "{% endif %}\n{%- endfor -%}\n",
    "bos": "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}"
    "{{ eos_token }}{% endfor %}",
    "tojson": "{{ messages | tojson }}{{ messages[0] | tojson(indent=2, sort_keys=true) }}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}"
    "{% set ns.n = ns.n + m.content|length %}{% endfor %}{{ ns.n }}",
    "loop controls": "{% for m in messages %}{% if loop.index0 == 1 %}{% continue %}{% endif %}{{ m.role }}"
    "{% if loop.index0 == 2 %}{% break %}{% endif %}{% endfor %}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "macro": "{% macro turn(m) %}<{{ m.role }}>{% endmacro %}{{ turn(messages[0]) }}{{ tools is none }}",
    "undefined": "{{ nothing }}{% if nothing is defined %}x{% endif %}{{ messages[0].nothing }}",
    "methods": "{{ messages[0].content.split(' ')[0].upper() }}{{ messages[0].get('x', 'y') }}"
    "{{ dict(a=1)['a'] }}{{ messages[::-1][0].role }}",
}


def render(source: str, max_chars: int = DEFAULT_MAX_CHARS) -> str:
    return ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"}, max_chars=max_chars).render(TALK)


@pytest.mark.parametrize("name", sorted(TEMPLATES))
@pytest.mark.parametrize("prompt", [True, False])
def test_a_template_renders_as_transformers_renders_it(name: str, prompt: bool) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    rendered: Any = render_jinja_template(
        [[message._asdict() for message in TALK]],
        chat_template=TEMPLATES[name],
        add_generation_prompt=prompt,
        bos_token="<s>",
        eos_token="</s>",
    )
    template = ChatTemplate(TEMPLATES[name], {"bos_token": "<s>", "eos_token": "</s>"})
    assert template.render(TALK, add_generation_prompt=prompt) == rendered[0][0]


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__ }}{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='x') }}",
        "{{ raise_exception.__globals__ }}{{ raise_exception.__globals__['x'] }}",
        "{{ strftime_now.__code__.co_code }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ namespace(__init__=1) }}",
        "{{ self.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ '{0.__class__.__mro__}'.format(messages) }}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
        "{{ range(100001) | list }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ messages[0]['content'] / 0 }}",
        "{{ undefined_function() }}",
    ],
)
def test_what_reaches_inside_grows_or_breaks_is_a_typed_error(source: str) -> None:
    with pytest.raises(TemplateFailed):
        render(source)


def test_a_template_can_refuse_a_conversation_and_say_why() -> None:
    with pytest.raises(TemplateFailed, match="refuses the conversation: roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")


def test_a_long_refusal_is_cut() -> None:
    with pytest.raises(TemplateFailed) as caught:
        render("{{ raise_exception('x' * 10000) }}")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("source", ["{{ 'x' * 1001 }}", "{% for i in range(1001) %}x{% endfor %}"])
def test_more_output_than_allowed_is_refused(source: str) -> None:
    with pytest.raises(TemplateFailed, match="more than 1000 characters"):
        render(source, max_chars=1000)
    assert len(render(source.replace("1001", "1000"), max_chars=1000)) == 1000


@pytest.mark.parametrize("source", ["{% for %}", "{{ x", "{% nonsense %}", "{{ 'a' | no_such_filter }}"])
def test_a_template_that_does_not_compile_is_refused_at_once(source: str) -> None:
    with pytest.raises(TemplateFailed, match="broken"):
        ChatTemplate(source, {})


def test_the_time_is_the_one_given() -> None:
    template = ChatTemplate("{{ strftime_now('%d %b %Y') }}", {}, now=lambda: datetime(2026, 11, 21))
    assert template.render(TALK) == "21 Nov 2026"


@pytest.mark.smollm2
def test_the_default_models_template_renders_as_transformers_renders_it(smollm2: ModelDirectory) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2.path)
    messages = [message._asdict() for message in TALK]
    assert smollm2.chat_template is not None
    ours = ChatTemplate(smollm2.chat_template, smollm2.special_tokens)
    for prompt in (True, False):
        theirs = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        assert ours.render(TALK, add_generation_prompt=prompt) == theirs
