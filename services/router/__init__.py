"""The front door: takes requests of tenants, gives them to workers, relays the tokens exactly once.

    client ──▶ front_door ──▶ arrival      who asks, is it allowed, what is asked (validation, limits)
                   │          preparation  encoding ∥ response cache, class, shape
                   │             │
                   │             ▼
                   │          dispatcher ◀──▶ policy.Scheduler   who goes next, and where (pure)
                   │             │
                   ▼             ▼
    client ◀── relay.outlet ◀─ relay.flight ◀── sessions.session ◀══▶ worker

Each arrow is a plain call in one event loop. Between a worker's frame and the client's message there is no
task, future or await a token: a frame is a loop over its updates, a client message one wake-up.
What becomes of a stream whose worker or router is lost is the business of `continuity`.
"""
