"""Messages as plain values, which `marshal` takes: a tenth of the time of pickles, which look names up.

Each pair here is one kind of message part, into values and back. Arrays are plain bytes on the way, and
read-only after it. A number of numpy's would become bytes without a word: there may be none.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import numpy as np

from services.worker.engine.report import Commands, Progress, StepReport, Work
from services.worker.scheduler.budget import StepModelState
from services.worker.scheduler.events import (
    NO_KV_EVENTS,
    NO_OUTPUTS,
    NO_TERMINALS,
    Credits,
    Finished,
    KVEvents,
    KVSnapshot,
    Load,
    OutputLogprobs,
    Outputs,
    Rejected,
    RejectReason,
    Returned,
    Room,
    Served,
    Terminals,
    Timings,
    Usage,
)
from services.worker.scheduler.request import (
    NO_IDS,
    FinishReason,
    Grammar,
    Ids,
    LatencyClass,
    Merge,
    Request,
    Sampling,
)

Values = tuple[Any, ...]

_REQUEST = (
    "handle", "max_tokens", "arrival_s", "deadline_s", "ttft_target_s", "tpot_target_s", "kv_key",
    "public_kv_key", "public_prefix_tokens", "expected_output_tokens", "tenant", "session",
)  # fmt: skip
_SAMPLING = (
    "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
    "seed", "stop_token_ids", "ignore_eos", "min_tokens", "logprobs",
)  # fmt: skip
_request_values = attrgetter(*_REQUEST)
_sampling_values = attrgetter(*_SAMPLING)


def of_commands(commands: Commands) -> Values:
    """What `commands` takes."""
    submits = [_of_request(each) for each in commands.submits]
    merges = [(handle, _of_merge(merge)) for handle, merge in commands.merges]
    flags = commands.drain, commands.kv_snapshot, commands.close
    return commands.last_number, submits, commands.aborts, merges, *flags


def commands(values: Values) -> Commands:
    """The commands of these values."""
    number, submits, aborts, merges, *flags = values
    changes = [(handle, _merge(merge)) for handle, merge in merges]
    return Commands(number, [_request(each) for each in submits], aborts, changes, *flags)


def of_report(report: StepReport) -> Values:
    """What `report` takes."""
    credits, progress, outputs = report.credits, report.progress, report.outputs
    return (
        report.last_command,
        tuple(report.load),
        (*credits[:-1], tuple(credits.foreground)),
        (*progress[:-1], tuple(progress.work)),
        tuple(report.step_model),
        _of_outputs(outputs) if len(outputs) else None,
        None if report.terminals is NO_TERMINALS else _of_terminals(report.terminals),
        None if report.kv is NO_KV_EVENTS else _of_kv(report.kv),
        None if report.kv_snapshot is None else tuple(report.kv_snapshot),
        [(tag, *counts) for tag, counts in report.served.items()],
    )


def report(values: Values) -> StepReport:
    """The report of these values."""
    last_command, load, credits, progress, step_model, outputs, terminals, kv, snapshot, served = values
    return StepReport(
        last_command=last_command,
        load=Load._make(load),
        credits=Credits._make((*credits[:-1], Room._make(credits[-1]))),
        progress=Progress._make((*progress[:-1], Work._make(progress[-1]))),
        step_model=StepModelState._make(step_model),
        outputs=NO_OUTPUTS if outputs is None else _outputs(outputs),
        terminals=NO_TERMINALS if terminals is None else _terminals(terminals),
        kv=NO_KV_EVENTS if kv is None else _kv(kv),
        kv_snapshot=None if snapshot is None else KVSnapshot._make(snapshot),
        served={tag: Served(*counts) for tag, *counts in served},
    )


def _of_request(request: Request) -> Values:
    grammar = request.grammar
    return (
        request.prompt.tobytes(),
        request.delivered.tobytes(),
        _sampling_values(request.sampling),
        None if grammar is None else (grammar.kind, grammar.source),
        int(request.latency_class),
        _of_merge(request.merge),
        _request_values(request),
    )


def _request(values: Values) -> Request:
    prompt, delivered, sampling, grammar, latency_class, merge, rest = values
    return Request(
        prompt=_ids(prompt),
        delivered=_ids(delivered),
        sampling=Sampling(**dict(zip(_SAMPLING, sampling, strict=True))),
        grammar=None if grammar is None else Grammar(*grammar),
        latency_class=LatencyClass(latency_class),
        merge=_merge(merge),
        **dict(zip(_REQUEST, rest, strict=True)),
    )


def _of_merge(merge: Merge | None) -> Values | None:
    return None if merge is None else tuple(merge)


def _merge(values: Values | None) -> Merge | None:
    return None if values is None else Merge._make(values)


def _ids(content: bytes) -> Ids:
    return np.frombuffer(content, np.int32) if content else NO_IDS


def _of_outputs(outputs: Outputs) -> Values:
    columns = outputs.handles.tobytes(), outputs.indices.tobytes(), outputs.tokens.tobytes()
    return *columns, [_of_logprobs(part) for part in outputs.logprobs]


def _outputs(values: Values) -> Outputs:
    handles, indices, tokens, logprobs = values
    return Outputs(
        np.frombuffer(handles, np.int64),
        np.frombuffer(indices, np.int32),
        np.frombuffer(tokens, np.int32),
        tuple(_logprobs(part) for part in logprobs),
    )


def _of_logprobs(part: OutputLogprobs) -> Values:
    arrays = part.rows, part.counts, part.chosen, part.top_ids, part.top
    return part.top.shape, *(each.tobytes() for each in arrays)


def _logprobs(values: Values) -> OutputLogprobs:
    shape, rows, counts, chosen, top_ids, top = values
    return OutputLogprobs(
        np.frombuffer(rows, np.int32),
        np.frombuffer(counts, np.int32),
        np.frombuffer(chosen, np.float32),
        np.frombuffer(top_ids, np.int32).reshape(shape),
        np.frombuffer(top, np.float32).reshape(shape),
    )


def _of_terminals(terminals: Terminals) -> Values:
    finished = [
        (each.handle, int(each.reason), tuple(each.usage), tuple(each.timings), *each[4:])
        for each in terminals.finished
    ]
    rejected = [(each.handle, int(each.reason), each.message) for each in terminals.rejected]
    return finished, rejected, [tuple(each) for each in terminals.returned]


def _terminals(values: Values) -> Terminals:
    finished, rejected, returned = values
    return Terminals(
        tuple(
            Finished(handle, FinishReason(reason), Usage._make(usage), Timings._make(timings), *rest)
            for handle, reason, usage, timings, *rest in finished
        ),
        tuple(Rejected(handle, RejectReason(reason), message) for handle, reason, message in rejected),
        tuple(map(Returned._make, returned)),
    )


def _of_kv(kv: KVEvents) -> Values:
    return kv.first_number, kv.stored.tobytes(), kv.digests


def _kv(values: Values) -> KVEvents:
    first_number, stored, digests = values
    return KVEvents(first_number, np.frombuffer(stored, np.bool_), digests)
