"""Output under a grammar, from a model of random weights: whatever ends by itself must match."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from services.worker.engine.client import EngineClient
from services.worker.scheduler.policy import SchedulerSettings
from services.worker.scheduler.request import FinishReason, LatencyClass, Request, Sampling
from tests.support.constrained import (
    EOS,
    SCHEMAS,
    TOKENIZER,
    Answered,
    answers,
    constrained,
    constrained_engine,
    listen,
    submit,
    write_model,
)
from tests.support.offline import prompt_of, request_of

LIST = 'start: "[" item ("," item)* "]"\nitem: "x" | start'
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["mill", "wheel"]}, "minItems": 3, "maxItems": 6},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
EXPLOSIVE = {
    "repetition": ("regex", "(a{1000}){1000}"),
    "repetition behind a letter": ("regex", "b(a{1000}){1000}"),
    "combinations": (
        "json_schema",
        {"allOf": [{"anyOf": [{"required": [f"a{i}_{j}"]} for j in range(4)]} for i in range(12)]},
    ),
    "intersection": (
        "json_schema",
        {"type": "string", "pattern": "^(([a-z]+)*x){50}(.*y.{20}){5}$", "minLength": 20, "maxLength": 3000},
    ),
    "a large multiple": ("json_schema", {"type": "integer", "multipleOf": 999999937}),
}
IMPOSSIBLE = {
    "no JSON": ("json_schema", "{nope"),
    "no schema": ("json_schema", {"type": "nope"}),
    "an unknown keyword": ("json_schema", {"type": "string", "not": {"const": "a"}}),
    "contradictory bounds": ("json_schema", {"type": "integer", "minimum": 5, "maximum": 3}),
    "contradictory types": ("json_schema", {"allOf": [{"type": "string"}, {"type": "integer"}]}),
    "false": ("json_schema", False),
    "nothing to choose": ("json_schema", {"enum": []}),
    "a broken reference": ("json_schema", {"$ref": "#/nowhere"}),
    "another machine's": ("json_schema", {"$ref": "https://example.com/schema.json"}),
    "itself": ("json_schema", {"$ref": "#"}),
    "a broken pattern": ("json_schema", {"type": "string", "pattern": "("}),
    "too deep": ("json_schema", '{"items":' * 3000 + "{}" + "}" * 3000),
    "a broken regex": ("regex", "(a"),
    "a regex with a look-ahead": ("regex", "(?=a)b"),
    "a regex nested too deep": ("regex", "(" * 10_000 + "a" + ")" * 10_000),
    "an unknown rule": ("lark", "start: nowhere"),
    "a rule without end": ("lark", "start: start start"),
    "a lark nested too deep": ("lark", "start: " + "(" * 10_000 + '"a"' + ")" * 10_000),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("constrained"))


@pytest.fixture(scope="module")
async def engine(model: Path) -> AsyncIterator[EngineClient]:
    async with constrained_engine(model) as client:
        yield client


def ended(answer: Answered) -> FinishReason:
    assert answer.end is not None
    reason = answer.end.reason
    assert isinstance(reason, FinishReason), answer.end
    return reason


def judge(schema: Any, text: str) -> None:
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    jsonschema.Draft202012Validator(schema, format_checker=checker).validate(json.loads(text))


async def test_the_engine_says_that_it_has_grammars(engine: EngineClient) -> None:
    assert engine.description.capabilities.grammar


@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_every_schema_gives_json_that_is_valid_under_it(
    engine: EngineClient, temperature: float
) -> None:
    assert len(SCHEMAS) >= 40
    sampling = {
        handle: Sampling(temperature=temperature, seed=handle, repetition_penalty=1.3, frequency_penalty=0.2)
        for handle in range(1, len(SCHEMAS) + 1)
    }
    requests = {
        name: constrained(handle, "json_schema", schema, 600, sampling=sampling[handle])
        for handle, (name, schema) in enumerate(SCHEMAS.items(), 1)
    }
    heard = await answers(engine, *requests.values())
    endless = {name for name, each in requests.items() if ended(heard[each.handle]) is FinishReason.LENGTH}
    assert endless <= {name for name in SCHEMAS if "recursive" in name}  # greedy output may never close them
    failures = {}
    for name in SCHEMAS.keys() - endless:
        answer = heard[requests[name].handle]
        try:
            assert ended(answer) is FinishReason.EOS
            judge(SCHEMAS[name], answer.text)
        except (AssertionError, ValueError, jsonschema.ValidationError) as error:
            failures[name] = (answer.text, answer.end, str(error)[:200])
    assert failures == {}


async def test_a_regex_matches_the_whole_output(engine: EngineClient) -> None:
    patterns = [
        r"[0-9]{3}-[0-9]{4}",
        r"(yes|no|maybe)",
        r"[a-f]+x",
        r"The (wheel|mill) turns [1-9][0-9]? times\.",
    ]
    heard = await answers(engine, *(constrained(n, "regex", each) for n, each in enumerate(patterns, 1)))
    for handle, pattern in enumerate(patterns, 1):
        assert ended(heard[handle]) is FinishReason.EOS
        assert re.fullmatch(pattern, heard[handle].text), heard[handle].text


async def test_a_grammar_in_lark_nests(engine: EngineClient) -> None:
    heard = await answers(engine, *(constrained(handle, "lark", LIST) for handle in range(1, 9)))
    for answer in heard.values():
        assert ended(answer) is FinishReason.EOS
        assert isinstance(json.loads(answer.text.replace("x", "0")), list)
    assert any("[[" in answer.text or ",[" in answer.text for answer in heard.values())


async def test_output_ends_where_nothing_may_follow_and_needs_no_end_id(engine: EngineClient) -> None:
    sampling = Sampling(temperature=1.0, seed=1, ignore_eos=True)
    heard = await answers(engine, constrained(1, "regex", "(yes|no)", sampling=sampling))
    assert ended(heard[1]) is FinishReason.EOS
    assert heard[1].text in {"yes", "no"}
    assert EOS not in heard[1].ids


async def test_an_output_cut_by_max_tokens_says_so(engine: EngineClient) -> None:
    heard = await answers(engine, constrained(1, "json_schema", PERSON, 5))
    assert ended(heard[1]) is FinishReason.LENGTH
    assert len(heard[1].ids) == 5


async def test_min_tokens_delays_the_end_as_far_as_the_grammar_lets_it(engine: EngineClient) -> None:
    sampling = Sampling(temperature=1.0, seed=5, min_tokens=40)
    open_ended = constrained(1, "regex", "[a-z]*", 200, sampling=sampling)
    closed = constrained(2, "regex", "yes", 200, sampling=sampling)
    heard = await answers(engine, open_ended, closed)
    assert len(heard[1].ids) >= 40
    assert ended(heard[1]) is FinishReason.EOS
    assert (heard[2].text, ended(heard[2])) == ("yes", FinishReason.EOS)


async def test_a_stop_id_counts_only_where_the_grammar_is_satisfied(engine: EngineClient) -> None:
    digit = TOKENIZER.token_to_id("7")
    sampling = Sampling(temperature=1.0, seed=3, stop_token_ids=(digit, 4_000_000_000), ignore_eos=True)
    heard = await answers(
        engine, *(constrained(n, "regex", "[0-9]{4}[0-9]*", 300, sampling=sampling) for n in range(1, 9))
    )
    for answer in heard.values():
        assert ended(answer) is FinishReason.STOP_TOKEN
        assert digit == answer.ids[-1] not in answer.ids[:-1]
        assert re.fullmatch("[0-9]{4}[0-9]*", TOKENIZER.decode(answer.ids[:-1]))


async def test_logprobs_are_those_of_the_unbound_model(engine: EngineClient) -> None:
    sampling = Sampling(logprobs=3)
    engine.submit(constrained(1, "regex", "(yes|no)", sampling=sampling))
    logprobs = []
    async for report in engine.reports():
        logprobs += [news.logprobs for news in report.outputs if news.logprobs is not None]
        if report.terminals.finished:
            break
    free = await answers(engine, request_of(2, prompt_of(20, seed=1), 1, sampling=sampling))
    assert logprobs[0].top_ids[0] == free[2].ids[0]
    assert logprobs[0].chosen < logprobs[0].top[0]


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0, top_p=0.9, top_k=50, seed=11)])
async def test_a_resumed_output_goes_on_as_if_undisturbed(engine: EngineClient, sampling: Sampling) -> None:
    prompt = prompt_of(70, seed=9)
    whole = constrained(1, "json_schema", PERSON, sampling=sampling, prompt=prompt)
    ids = (await answers(engine, whole))[1].ids
    assert len(ids) > 10
    offsets = [1, 2, 3, 7, len(ids) // 2, len(ids) - 2, len(ids) - 1, len(ids)]
    resumed = {
        handle: constrained(
            handle, "json_schema", PERSON, sampling=sampling, prompt=prompt, delivered=np.array(ids[:offset])
        )
        for handle, offset in enumerate(offsets, 10)
    }
    heard = await answers(engine, *resumed.values())
    for handle, offset in enumerate(offsets, 10):
        assert ids[:offset] + heard[handle].ids == ids
        assert ended(heard[handle]) is FinishReason.EOS


async def test_delivered_output_that_breaks_the_grammar_fails(engine: EngineClient) -> None:
    request = constrained(1, "regex", "[0-9]{8}", delivered=np.array(TOKENIZER.encode("12x").ids))
    heard = await answers(engine, request)
    assert ended(heard[1]) is FinishReason.GRAMMAR


@pytest.mark.parametrize("run_ahead", [0, 1])
async def test_neighbours_preemption_chunks_and_running_ahead_change_nothing(
    model: Path, run_ahead: int
) -> None:
    bound = [constrained(n, "json_schema", PERSON, prompt=prompt_of(150, seed=n)) for n in range(1, 7)]
    free = [request_of(n, prompt_of(90, seed=n), 90, sampling=sampled(n)) for n in range(7, 13)]
    alone: dict[int, list[int]] = {}
    async with constrained_engine(model) as engine:
        for request in (*bound, *free):
            alone |= {request.handle: (await answers(engine, request))[request.handle].ids}
    small = {"max_seqs": 4, "kv_blocks": 64, "scheduler": SchedulerSettings(max_chunk=64)}
    async with constrained_engine(model, run_ahead=run_ahead, **small) as engine:
        heard = submit(engine, *as_batch(bound[:3]))
        await listen(engine, heard, lambda: all(len(heard[n].ids) > 5 for n in (1, 2, 3)))
        heard |= submit(engine, *free, *bound[3:])
        await listen(engine, heard, lambda: all(each.end is not None for each in heard.values()))
    assert {handle: answer.ids for handle, answer in heard.items()} == alone
    assert sum(heard[n].end.usage.preemptions for n in (1, 2, 3)) > 0  # type: ignore[union-attr]


def sampled(seed: int) -> Sampling:
    return Sampling(temperature=1.0, seed=seed, ignore_eos=True)


def as_batch(requests: list[Request]) -> list[Request]:
    return [replace(request, latency_class=LatencyClass.BATCH) for request in requests]


@pytest.mark.parametrize("case", [*IMPOSSIBLE, *EXPLOSIVE])
async def test_a_bad_grammar_fails_alone_while_neighbours_go_on(engine: EngineClient, case: str) -> None:
    kind, source = (IMPOSSIBLE | EXPLOSIVE)[case]
    neighbour = request_of(1, prompt_of(30), 40)
    good = constrained(2, "regex", "[0-9]{3}-[0-9]{4}")
    heard = await answers(engine, constrained(3, kind, source), neighbour, good)
    assert ended(heard[3]) is FinishReason.GRAMMAR
    assert heard[3].ids == []
    assert 10 < len(heard[3].end.message) <= 300  # type: ignore[union-attr]
    assert len(heard[1].ids) == 40
    assert re.fullmatch("[0-9]{3}-[0-9]{4}", heard[2].text)


async def test_a_request_can_be_cancelled_while_its_grammar_is_compiled(engine: EngineClient) -> None:
    heard = submit(engine, *(constrained(n, *EXPLOSIVE["repetition"]) for n in (1, 2, 3)))
    engine.abort(3)
    heard |= submit(engine, request_of(4, prompt_of(30), 30))
    await listen(engine, heard, lambda: all(each.end is not None for each in heard.values()))
    wanted = [FinishReason.GRAMMAR, FinishReason.GRAMMAR, FinishReason.CANCELLED, FinishReason.LENGTH]
    assert [ended(answer) for answer in heard.values()] == wanted


async def test_an_engine_whose_model_has_no_tokenizer_refuses_grammars(tiny_llama: Path) -> None:
    async with constrained_engine(tiny_llama) as engine:
        assert not engine.description.capabilities.grammar
        heard = await answers(engine, constrained(1, "regex", "a"))
        assert "grammars" in heard[1].end.message  # type: ignore[union-attr]
