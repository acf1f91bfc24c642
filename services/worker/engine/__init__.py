"""The engine half of a worker: from token ids to token ids, in a process of its own.

How the session half uses it (everything needed is `EngineClient`, `Request` and the dataclasses of reports):

    from services.worker.engine.client import EngineClient
    from services.worker.engine.settings import EngineSettings
    from services.worker.scheduler.request import LatencyClass, Request, Sampling

    engine = await EngineClient.start(EngineSettings(model=Path("…")))   # raises EngineLoadError, one line
    hello = engine.description              # EngineDescription: digests, KVSpec, capabilities, eos ids, …
    number = engine.submit(Request(handle=7, prompt=np.array(ids, np.int32), max_tokens=64, …))
    number = engine.abort(7)                # still answered by exactly one terminal event
    async for report in engine.reports():   # one StepReport an engine step, or a heartbeat (≤ 200 ms)
        for handle, output_index, token, logprobs in report.outputs: …
        for finished in report.terminals.finished: …     # reason, usage, timings, stop_token_id
        for rejected in report.terminals.rejected: …     # never accepted: reason, message
        for returned in report.terminals.returned: …     # after drain(): go on elsewhere
    await engine.close()

* Handles are the caller's: any int64 that is unique among its unfinished requests. A handle is free again
  after its terminal event. Each submit ends in exactly one of finished, rejected, returned.
* Commands are numbered; all commands of one event-loop turn travel in one message. `report.last_command` says
  up to which command `report.load` and `report.credits` count.
* `reports()` has one consumer; it raises `EngineDied` when the engine is gone, and ends after `close()`.
  `listen(hear)` is the same without an iterator, for who wants each report at the moment it comes.
* A resumed request has `delivered` ids; its next token has output index len(delivered).
* Times are `time.monotonic()` seconds, which processes of one machine share: turn "milliseconds left" into
  `deadline_s` on receipt, and time already waited in the router into an earlier `arrival_s`.
* `kv_key=b""`: the request neither reuses nor leaves reusable KV blocks.
* KV events are numbered without gaps from 1; `engine.request_kv_snapshot()` puts all digests into a report.
* `report.served` counts since the last report; add it up for totals.
* `EngineClient.start(..., in_process=True)` runs the same engine in a thread (tests); `loader=` replaces the
  model by anything that returns a `LoadedEngine`.

    client.py   asyncio side           loop.py     receive, plan, launch, settle, report
    process.py  the process around it  inbox.py, outbox.py   commands; reports and heartbeats
    report.py   messages               base.py     Runner: what an engine must do
    load.py     which engine runs      philox.py   counter-based randomness
    grammar.py  one request's grammar  grammars.py all of them, compiled and advanced beside the steps
    multiples.py, intersections.py   grammars that llguidance must not be asked for
    torch/      the default engine     settings.py what an operator chooses
    simulated/  no model: invented tokens, steps that only take time
"""
