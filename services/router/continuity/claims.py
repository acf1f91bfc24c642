"""What a request carries to its worker so that another router can go on with it, and how that one reads it.

Both the key and the state are the tenant's: for another tenant another key is derived, so that nothing is
found, exactly as for a request that never was. The state is encrypted: it holds what a worker must not
know (the tenant's user), and bound to its key, so that a worker cannot hand it out for another request.
"""

from __future__ import annotations

from google.protobuf.message import DecodeError
from headrace.v1 import router_pb2, session_pb2

from services.common.scope import TenantKeys
from services.router.relay.attempt import NOT_CLAIMABLE, Claimable
from services.router.relay.order import Order
from services.router.relay.report import wire_reason

KIND = "claim"
MOST_STATE_BYTES = 24 << 10
"""A larger one (labels, stop strings) is not carried: frames are bounded. Its request is not claimable."""
_IN_SUBMIT = ("text", "chat", "token_ids", "sampling", "grammar", "resume")


def claim_key(keys: TenantKeys, request_id: str) -> bytes:
    """Under which a tenant's request is found. 32 bytes."""
    return keys.scope().cache_key(KIND, request_id.encode())


def sealed(request: router_pb2.GenerateRequest, order: Order, keys: TenantKeys) -> Claimable:
    """What the Submit carries of an order that is about to run."""
    state = session_pb2.RouterState(
        model=order.model,
        class_reason=wire_reason(order.class_reason),
        encode_us=int(order.encode_s * 1e6),
    )
    state.request.CopyFrom(request)
    for name in _IN_SUBMIT:
        state.request.ClearField(name)
    key = claim_key(keys, order.request_id)
    found = keys.scope().seal(key, state.SerializeToString())
    return Claimable(key, found) if len(found) <= MOST_STATE_BYTES else NOT_CLAIMABLE


def opened(submit: session_pb2.Submit, keys: TenantKeys) -> session_pb2.RouterState | None:
    """The state in a Submit that a worker handed back; None when `sealed` did not make it for its key."""
    plain = keys.scope().open(submit.claim_key, submit.router_state)
    if plain is None:
        return None
    try:
        state = session_pb2.RouterState.FromString(plain)
    except DecodeError:
        return None
    state.request.sampling.CopyFrom(submit.sampling)
    if submit.HasField("grammar"):
        state.request.grammar.CopyFrom(submit.grammar)
    state.request.max_tokens = submit.max_tokens
    return state
