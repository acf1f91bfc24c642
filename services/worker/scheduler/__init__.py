"""Continuous batching as a pure state machine: which tokens are computed in the next step.

What may live here: requests, KV block accounting, order, budgets, preemption. No torch, no grpc, no asyncio,
no clock: whoever drives the scheduler passes `now`, in monotonic seconds. The worker's engine loop drives it
in real time, the simulator in virtual time.

    request.py   what a caller asks                    blocks.py    who holds which KV block
    step.py      what a runner is asked, and answers   forecast.py  how long an output may become
    events.py    what happened to requests             sequence.py  one request being served
    policy.py    order, classes, ageing                budget.py    how long a step will take
    planner.py   who is in the next step               draft.py     that step as arrays
    residents.py who has a slot                        ledger.py    what happened, until asked for
    steady.py    rows that stay as they are            kept.py      tokens that go together
    launches.py  steps on their way                    occupancy.py how full it is, what could be started
    scheduler.py add, abort, plan, commit
"""
