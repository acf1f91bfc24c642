"""Policies of others as they publish them, with their own defaults: which worker takes a request on arrival.

What may live here: pure functions of what such a router knows. Each names its source; each source's formula
is worked by hand in tests/unit/bench/test_sim_published.py.
"""
