"""Decisions, pure: no I/O, no clock of its own, no gRPC types. The simulator drives the same objects.

settings      parameters of all of it; what contradicts is refused
classify      the class and the shape of a request
budget        how much interactive work a tenant may have while others want some
admission     who is let in while the mesh is busy
queue/        classes, tenants and deadlines: who is next
placement     which worker takes a request; fleet, prefix_index, speed: what it knows of workers
prediction    waits and costs in seconds, from the workers' step models
moving        which running streams are better off elsewhere
preemption    which batch request gives way
rates         token buckets of tenants
ticket        what the scheduler knows of a request
worker        what the scheduler knows of a worker
turn          which request goes next, and to which worker
pool          these joined for one model
scheduler     the one object that the dispatcher asks
"""

from services.router.policy.admission import QueueLimits, Refusal, RefusalKind
from services.router.policy.classify import ClassReason, LatencyClass, Verdict, classify, log2_bucket
from services.router.policy.prediction import Prediction
from services.router.policy.preemption import Displacement
from services.router.policy.rates import Gcra
from services.router.policy.scheduler import Accuracy, Assignment, Scheduler, Waiting
from services.router.policy.settings import ClassPolicy, PolicySettings
from services.router.policy.ticket import Cost, Ticket
from services.router.policy.worker import WorkerView

__all__ = [
    "Accuracy",
    "Assignment",
    "ClassPolicy",
    "ClassReason",
    "Cost",
    "Displacement",
    "Gcra",
    "LatencyClass",
    "PolicySettings",
    "Prediction",
    "QueueLimits",
    "Refusal",
    "RefusalKind",
    "Scheduler",
    "Ticket",
    "Verdict",
    "Waiting",
    "WorkerView",
    "classify",
    "log2_bucket",
]
