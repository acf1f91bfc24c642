"""The worker's half of the sessions: it dials routers, takes their requests, tells them what comes of it.

    links.py      which routers          handshake.py  both sides prove that they belong
    link.py       one router, for ever   session.py    one open session: what came, what must be said
    desk.py       engine ⇄ sessions      credits.py    what each session may submit, pure
    job.py        one request            outgoing.py   everything to say, merged into frames ≤ 64 KiB
    intake.py     Submit → Request       prompts.py    long prompts, piece by piece
    prefixes.py   reusable blocks        books.py      credits of all and of foreground work

A request lives here as a `Job`. It outlasts a broken session for the grace that the router named, with all
output that the router has not acknowledged, and goes on in the next session from the index that it lacks.
"""
