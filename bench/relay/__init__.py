"""What a streamed token costs: our router and worker beside plain relays, and the real SMG where it is.

    python -m bench.relay                  the router against a relay with one stream a request
    python -m bench.relay worker           the worker against one with a stream a request, on the same engine
    python -m bench.relay stretch          what serving does to the steps of an engine
    python -m bench.relay latency          time to the first token beside that of the bare engine
    python -m bench.relay many             four routers and 16 workers against one router

A router that is alone on its core runs with `own_cores` on, which is off by default: gRPC's poller gives way
to its loop. In runs apart from each other it cost less so.

`--dry` is a small run that records nothing. Everything listens on loopback and ends with the command.

processes   children on chosen cores, and their CPU time
mesh        our services as children                 clients      load, and what is seen of it
decoder     steps of a decoder without a model       trial        one contender under one load
stream_worker, relay    the baseline: one stream a request, on both legs
engine_worker           our engine behind one stream a request
session_worker          workers without an engine that speak the session protocol
textless_router         our router without detokenising
busy                    an engine whose step is 4 ms of sleep and 1 ms of Python
profiled                our router or worker under cProfile
smg, smg_worker         the real SMG from an environment of its own, and what it drives
"""
