"""One grammar over the tiny vocabulary: what may come next, and where it ends."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from services.worker.engine.errors import GrammarError
from services.worker.engine.grammar import Constraint, Vocabulary
from services.worker.scheduler.request import Grammar, Sampling
from tests.support.offline import prompt_of, request_of
from tests.support.tiny_tokenizer import tiny_tokenizer, write_tiny_tokenizer

EOS, PAD, LOGITS = 2, 0, 520
TOKENIZER = tiny_tokenizer()


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    directory = tmp_path_factory.mktemp("vocabulary")
    write_tiny_tokenizer(directory)
    return Vocabulary.load(directory / "tokenizer.json", LOGITS, (EOS, PAD))


def begun(vocabulary: Vocabulary, kind: str, source: str, sampling: Sampling | None = None) -> Constraint:
    grammar = Grammar(kind, source)  # type: ignore[arg-type]
    request = request_of(1, prompt_of(3), sampling=sampling or Sampling(), grammar=grammar)
    return vocabulary.constraint(request)


def ids(text: str) -> list[int]:
    return TOKENIZER.encode(text).ids


def allowed(constraint: Constraint) -> set[int]:
    return set(np.flatnonzero(np.unpackbits(constraint.bits, bitorder="little")).tolist())


def texts(constraint: Constraint) -> set[str]:
    return {TOKENIZER.decode([token]) for token in allowed(constraint) - {EOS, PAD}}


def test_only_tokens_that_can_lead_to_a_match_are_allowed(vocabulary: Vocabulary) -> None:
    constraint = begun(vocabulary, "regex", "[0-9]{2}")
    assert constraint.find_next()
    assert texts(constraint) == {text for text in texts(constraint) if re.fullmatch("[0-9]{1,2}", text)}
    assert {str(digit) for digit in range(10)} <= texts(constraint)


def test_logits_without_a_token_are_never_allowed(vocabulary: Vocabulary) -> None:
    constraint = begun(vocabulary, "regex", "(?s:.*)")
    constraint.find_next()
    assert len(constraint.bits) * 8 >= LOGITS
    assert max(allowed(constraint)) < TOKENIZER.get_vocab_size()


def test_end_ids_are_allowed_where_the_output_matches_whole_and_nowhere_else(vocabulary: Vocabulary) -> None:
    constraint = begun(vocabulary, "regex", "[0-9]{2,4}")
    constraint.find_next()
    assert not allowed(constraint) & {EOS, PAD}
    constraint.take(ids("1"))
    constraint.find_next()
    assert not allowed(constraint) & {EOS, PAD}
    constraint.take(ids("2"))
    constraint.find_next()
    assert {EOS, PAD} < allowed(constraint)


def test_ignored_end_ids_are_never_allowed(vocabulary: Vocabulary) -> None:
    constraint = begun(vocabulary, "regex", "[0-9]+", Sampling(ignore_eos=True))
    constraint.take(ids("1"))
    assert constraint.find_next()
    assert not allowed(constraint) & {EOS, PAD}


def test_a_named_stop_id_is_no_text(vocabulary: Vocabulary) -> None:
    (seven,) = ids("7")
    constraint = begun(vocabulary, "regex", "[0-9]{2,4}", Sampling(stop_token_ids=(seven, LOGITS, 2**32 - 1)))
    constraint.find_next()
    assert seven not in allowed(constraint)
    constraint.take(ids("1") + ids("2"))
    constraint.find_next()
    assert {seven, EOS} < allowed(constraint)


def test_nothing_ends_before_min_tokens_unless_nothing_else_may_follow(vocabulary: Vocabulary) -> None:
    constraint = begun(vocabulary, "regex", "[0-9]*", Sampling(min_tokens=2))
    for expected in (False, False, True):
        assert constraint.find_next()
        assert (EOS in allowed(constraint)) is expected
        constraint.take(ids("1"))
    closed = begun(vocabulary, "regex", "yes", Sampling(min_tokens=50))
    closed.take(ids("yes"))
    assert not closed.find_next()


def test_a_whole_output_has_no_next_token(vocabulary: Vocabulary) -> None:
    constraint = begun(vocabulary, "json_schema", '{"type": "boolean"}')
    assert constraint.find_next()
    constraint.take(ids("true"))
    assert not constraint.find_next()


def test_a_stop_id_that_the_grammar_needs_is_a_dead_end(vocabulary: Vocabulary) -> None:
    (seven,) = ids("7")
    constraint = begun(vocabulary, "regex", "7", Sampling(stop_token_ids=(seven,)))
    with pytest.raises(GrammarError, match="no token"):
        constraint.find_next()


def test_output_that_does_not_match_is_refused_without_showing_it(vocabulary: Vocabulary) -> None:
    constraint = begun(vocabulary, "regex", "[0-9]{2}")
    with pytest.raises(GrammarError) as refused:
        constraint.take(ids("wheel"))
    assert "wheel" not in str(refused.value)


def test_blanks_between_tokens_of_json_are_bounded(vocabulary: Vocabulary) -> None:
    schema = '{"type": "array", "items": {"type": "boolean"}, "minItems": 1}'
    for fine in ("[true]", "[ true ]", "[\n    true\n]"):
        constraint = begun(vocabulary, "json_schema", schema)
        constraint.take(ids(fine))
        assert not constraint.find_next()
    for wrong in ("[  true]", "[\n\ntrue]", " [true]"):
        with pytest.raises(GrammarError):
            begun(vocabulary, "json_schema", schema).take(ids(wrong))


@pytest.mark.parametrize(
    ("kind", "source", "told"),
    [
        ("regex", "(a", r'^at 1\(8\): invalid regex "\(a": unclosed group$'),
        ("json_schema", '{"type": "nope"}', "nope"),
        ("json_schema", '{"minimum": 5, "maximum": 3, "type": "integer"}', "Unsatisfiable"),
        ("lark", "start: nowhere", r'^at 1\(8\): unknown name: "nowhere"$'),
    ],
)
def test_an_invalid_grammar_is_explained_in_a_line(
    vocabulary: Vocabulary, kind: str, source: str, told: str
) -> None:
    with pytest.raises(GrammarError, match=told) as refused:
        begun(vocabulary, kind, source)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("json_schema", '{"type": "integer", "multipleOf": 1000003}'),
        ("json_schema", '{"type": "number", "multipleOf": 1.000003}'),
        ("json_schema", '{"type": "integer", "multiple\\u004ff": 1000003}'),
        ("json_schema", '{"type": "integer", "multipleOf": 1000003, "multipleOf": 1}'),
        ("json_schema", '{"type": "integer", "allOf": [{"multipleOf": 1000}, {"multipleOf": 9973}]}'),
        ("json_schema", '{"items": [{"multipleOf": 30011}, {"multipleOf": 30013}]}'),
        ("lark", 'start: "a" %json {"type": "integer", "multipleOf": 1000003}'),
    ],
)
def test_multiples_with_too_many_remainders_are_refused_before_they_are_compiled(
    vocabulary: Vocabulary, kind: str, source: str
) -> None:
    with pytest.raises(GrammarError, match="multipleOf"):
        begun(vocabulary, kind, source)


@pytest.mark.parametrize("divisors", [[0.01, 0.05, 25, 100, 60, 7], [1_000_000_000], [3000, 2], [9973]])
def test_multiples_that_people_write_are_fine(vocabulary: Vocabulary, divisors: list[float]) -> None:
    properties = {f"p{at}": {"type": "number", "multipleOf": each} for at, each in enumerate(divisors)}
    schema = {"type": "object", "properties": properties}
    assert begun(vocabulary, "json_schema", json.dumps(schema)).find_next()


def held(count: int) -> list[dict[str, str]]:
    """Schemas of strings, each with a pattern of its own."""
    return [{"type": "string", "pattern": f".*{at}.*"} for at in range(count)]


def defined(count: int) -> dict[str, dict[str, str]]:
    return {f"d{at}": each for at, each in enumerate(held(count))}


INTERSECTIONS: dict[str, tuple[str, object]] = {
    "parts": ("json_schema", {"allOf": held(40)}),
    "parts of parts": ("json_schema", {"allOf": [{"allOf": held(20)}, {"allOf": held(20)[9:]}]}),
    "references": (
        "json_schema",
        {"$defs": defined(20), "allOf": [{"$ref": f"#/$defs/d{at}"} for at in range(20)]},
    ),
    "references by name": (
        "json_schema",
        {"$defs": {"a": {"$anchor": "all", "allOf": held(20)}}, "$ref": "#all"},
    ),
    "properties": (
        "json_schema",
        {"allOf": [{"type": "object", "properties": {"x": each}} for each in held(20)]},
    ),
    "a circle": (
        "json_schema",
        {
            "$defs": {
                "a": {"allOf": held(9), "properties": {"x": {"$ref": "#/$defs/b"}}},
                "b": {"allOf": [{"$ref": "#/$defs/a"}]},
            },
            "anyOf": [{"$ref": "#/$defs/a"}, {"allOf": [{"$ref": "#/$defs/b"}, *held(20)[9:]]}],
        },
    ),
    "inside a lark": ("lark", 'start: "a" %json ' + json.dumps({"allOf": held(40)})),
    "joined": ("lark", "start: A\nA: /a.*/ & /.*b/"),
    "excluded": ("lark", 'start: A\nA: ~/.*"/ // "'),
}


@pytest.mark.parametrize("name", INTERSECTIONS)
def test_strings_that_must_match_too_many_patterns_are_refused_before_they_are_compiled(
    vocabulary: Vocabulary, name: str
) -> None:
    kind, source = INTERSECTIONS[name]
    text = source if isinstance(source, str) else json.dumps(source).replace("pattern", "p\\u0061ttern")
    with pytest.raises(GrammarError, match=r"more than 8 patterns|& and ~"):
        begun(vocabulary, kind, text)


NODE = {
    "type": "object",
    "allOf": [{"$ref": "#/$defs/base"}],
    "properties": {"children": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
}
BASE = {
    "type": "object",
    "properties": {f"p{at}": {"type": "string", "format": "date"} for at in range(30)},
}


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("json_schema", json.dumps({"$defs": {"base": BASE}, "allOf": [{"$ref": "#/$defs/base"}, BASE]})),
        ("json_schema", json.dumps({"type": "string", "pattern": "[a-z]+@.*", "format": "email"})),
        ("json_schema", json.dumps({"anyOf": held(40)})),
        ("json_schema", json.dumps({"$defs": {"base": BASE, "node": NODE}, "$ref": "#/$defs/node"})),
        ("lark", r'start: "&" A "~" ~ 2' + "\n" + r"A: /[&~\/]+/ // & ~"),
    ],
    ids=["objects", "an address", "choices", "a tree", "signs in lark"],
)
def test_patterns_that_people_write_are_fine(vocabulary: Vocabulary, kind: str, source: str) -> None:
    assert begun(vocabulary, kind, source).find_next()


def test_a_tokenizer_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="tokenizer"):
        Vocabulary.load(tmp_path / "tokenizer.json", LOGITS, (EOS,))
