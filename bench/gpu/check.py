"""Part `check`: is everything right on this card? A failure is named, and the rest runs on.

python -m bench.gpu check
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator

import torch

from bench.gpu.check_kernels import Check, Kernels
from bench.gpu.check_runner import Runners
from bench.gpu.compare import CheckFailed
from bench.gpu.place import Place
from bench.results_contract import Row, row


def measure(place: Place) -> Iterator[Row]:
    """A row a check. Raises nothing but what ends the process anyway."""
    seed = random.randrange(1 << 20)  # fresh inputs each time
    print(f"inputs of kernels by seed {seed}", flush=True)
    for name, check in _all(place, seed):
        if place.left_s <= 0:
            print(f"{name}: NOT RUN, time is up", flush=True)
            yield row(name, "passed", "of 1", [0.0], aim="passes", met=False)
            continue
        began_s = time.perf_counter()
        said, passed = _run(check)
        spent_s = time.perf_counter() - began_s
        print(f"{'ok  ' if passed else 'FAIL'} {name}: {said}, {spent_s:.1f} s", flush=True)
        yield row(name, "passed", "of 1", [float(passed)], aim="passes", met=passed)


def _all(place: Place, seed: int) -> Iterator[Check]:
    yield from Kernels(place, place.kernels()).checks(seed)
    yield from Runners(place).checks()


def _run(check: Callable[[], str]) -> tuple[str, bool]:
    try:
        with torch.inference_mode():
            return check(), True
    except CheckFailed as error:
        return str(error), False
    except Exception as error:  # a crash of one is no reason to know nothing of the others
        first = (str(error).splitlines() or [""])[0]
        return f"{type(error).__name__}: {first}", False
