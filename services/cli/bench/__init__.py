"""A load generator over gRPC that measures what users of a mesh feel.

    arrivals, mix, prompts ──▶ workload ──▶ drive ──▶ call ──▶ record ──▶ report ──▶ table, results
        (when, how urgent, what)            (closed or open loop)         (pure statistics)

Times count from the moment at which a request should have been sent, not from when it was: a generator or a
server that falls behind cannot hide it (coordinated omission).
"""
