"""The worker's own GPU: which one it is (lease.py), and what it does (telemetry.py)."""
