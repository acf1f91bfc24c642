"""Decisions, pure: no I/O, no clock of its own, no gRPC types. The simulator drives the same objects.

classify    the class and the shape of a request
rates       token buckets of tenants
ticket      what the scheduler knows of a request
worker      what the scheduler knows of a worker
line        the order in which requests wait
placement   which worker takes a request
scheduler   the one object that the dispatcher asks
"""

from services.router.policy.classify import LatencyClass, classify, log2_bucket
from services.router.policy.rates import Gcra
from services.router.policy.scheduler import Assignment, Scheduler, Waiting
from services.router.policy.ticket import Cost, Ticket
from services.router.policy.worker import WorkerView

__all__ = [
    "Assignment",
    "Cost",
    "Gcra",
    "LatencyClass",
    "Scheduler",
    "Ticket",
    "Waiting",
    "WorkerView",
    "classify",
    "log2_bucket",
]
