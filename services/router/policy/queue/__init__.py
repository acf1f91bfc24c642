"""The queue of one model, in three levels.

shares    classes (and overdue requests) take turns in GPU seconds
counters  tenants take turns in weighted tokens
order     a tenant's requests go by effective deadline
lane      tenants and their orders
queue     all lanes joined
ranked    the sorted container that they share
"""

from services.router.policy.queue.lane import Lane
from services.router.policy.queue.queue import ModelQueue

__all__ = ["Lane", "ModelQueue"]
