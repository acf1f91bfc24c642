"""Valkey behind gRPC: opaque values under opaque keys, quota leases, snapshots. A miss is always right.

servicer.py   the RPCs            checks.py     what a request may hold
l1.py         this process's LRU  valkey.py     the connection, whether it can be relied on
reads.py      look-ups, batched   writes.py     stores, queued
breaker.py    when to give up     functions.py  what runs inside Valkey
frames.py     values as stored    quotas.py, snapshots.py
"""
