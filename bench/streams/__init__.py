"""Streams under stress, on real processes with simulated engines: `python -m bench.streams WHAT`.

    kills    workers are killed and frozen under running streams          kills.py   strikes.py
    routers  routers are killed under running streams                     routers.py
    scale    1 → 4 → 1 workers under load                                 scale.py
    soak     thousands of streams over two routers for minutes            soak.py    growth.py
    vanish   a thousand clients die mid-stream                            vanish.py  crowd.py
    slow     clients that read a byte a second beside others that read    slow.py    tap.py

Every id of every stream is compared with the undisturbed answer (asked.py, stream.py), and at the end nothing
may be held anywhere (stock.py). load.py keeps streams running, mesh.py the processes they run on.
"""
