"""A fleet in virtual time: the production policy of the router and the production scheduler of the worker.

What may live here: everything that stands in for devices, networks and clients, the emulated policies of
others, and how to measure. No rule of ours: those are in services/router/policy and services/worker.

    kernel.py    virtual time                        request.py  what clients ask, and what became of it
    device.py    how long steps take                 worker.py   scheduler, credits and device of one worker
    leap.py      many decode steps at once           frame.py    what a worker tells its routers
    router.py    our policy in a router process      early.py    a router that binds on arrival
    published/   policies of others, as published    loads.py    traces and synthetic loads
    fleet.py     one run                             outcome.py  what it came to
"""
