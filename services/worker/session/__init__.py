"""The worker's half of the sessions: it dials routers, takes their requests, tells them what comes of it.

    links.py      which routers          handshake.py   both sides prove that they belong
    link.py       one router, for ever   session.py     one open session: frames, their numbers, their credit
    desk.py       engine ⇄ sessions      commands.py    what a router's commands do; seats.py, faults.py
    hearing.py    outputs into jobs      receipts.py    who has heard what
    steady.py     as long as they stay   outgoing.py    everything to say, merged into frames ≤ 64 KiB
    job.py        one request            state_news.py  of the engine; kv_news.py: of its KV cache
    intake.py     Submit → Request       prompts.py     long prompts, piece by piece
    ends.py       how requests end       records.py     what may be claimed; ended.py: for how long
    prefixes.py   reusable blocks        books.py       credits of all and of foreground work
    home.py       a session, to others   credits.py     what each session may submit, pure
    columns.py    new ids of many jobs   tampering.py   faults on purpose, for tests

A request lives here as a `Job`. It outlasts a broken session for the grace that the router named, with all
output that the router has not acknowledged, and goes on in the next session from the index that it lacks.
"""
