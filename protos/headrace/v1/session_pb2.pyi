from headrace.v1 import router_pb2 as _router_pb2
from headrace.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EndReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    END_REASON_UNSPECIFIED: _ClassVar[EndReason]
    END_REASON_EOS: _ClassVar[EndReason]
    END_REASON_STOP_TOKEN: _ClassVar[EndReason]
    END_REASON_LENGTH: _ClassVar[EndReason]
    END_REASON_CANCELLED: _ClassVar[EndReason]
    END_REASON_DEADLINE: _ClassVar[EndReason]
    END_REASON_ERROR: _ClassVar[EndReason]
    END_REASON_GRAMMAR: _ClassVar[EndReason]
    END_REASON_CLAIMED: _ClassVar[EndReason]

class ReturnReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RETURN_REASON_UNSPECIFIED: _ClassVar[ReturnReason]
    RETURN_REASON_NO_CREDIT: _ClassVar[ReturnReason]
    RETURN_REASON_DRAINING: _ClassVar[ReturnReason]
    RETURN_REASON_PREEMPTED: _ClassVar[ReturnReason]
    RETURN_REASON_UNSUPPORTED: _ClassVar[ReturnReason]
    RETURN_REASON_INCOMPLETE: _ClassVar[ReturnReason]
END_REASON_UNSPECIFIED: EndReason
END_REASON_EOS: EndReason
END_REASON_STOP_TOKEN: EndReason
END_REASON_LENGTH: EndReason
END_REASON_CANCELLED: EndReason
END_REASON_DEADLINE: EndReason
END_REASON_ERROR: EndReason
END_REASON_GRAMMAR: EndReason
END_REASON_CLAIMED: EndReason
RETURN_REASON_UNSPECIFIED: ReturnReason
RETURN_REASON_NO_CREDIT: ReturnReason
RETURN_REASON_DRAINING: ReturnReason
RETURN_REASON_PREEMPTED: ReturnReason
RETURN_REASON_UNSUPPORTED: ReturnReason
RETURN_REASON_INCOMPLETE: ReturnReason

class WorkerFrame(_message.Message):
    __slots__ = ("number", "acknowledged_command", "hello", "proof", "updates", "returned", "load", "credit", "progress", "kv_events", "kv_snapshot", "tenant_service", "step_model", "draining", "foreground_credit", "claimed", "next_tokens")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGED_COMMAND_FIELD_NUMBER: _ClassVar[int]
    HELLO_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    UPDATES_FIELD_NUMBER: _ClassVar[int]
    RETURNED_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    KV_EVENTS_FIELD_NUMBER: _ClassVar[int]
    KV_SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    TENANT_SERVICE_FIELD_NUMBER: _ClassVar[int]
    STEP_MODEL_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    FOREGROUND_CREDIT_FIELD_NUMBER: _ClassVar[int]
    CLAIMED_FIELD_NUMBER: _ClassVar[int]
    NEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    number: int
    acknowledged_command: int
    hello: Hello
    proof: Proof
    updates: _containers.RepeatedCompositeFieldContainer[SequenceUpdate]
    returned: _containers.RepeatedCompositeFieldContainer[Returned]
    load: Load
    credit: Credit
    progress: Progress
    kv_events: KvEvents
    kv_snapshot: KvSnapshot
    tenant_service: _containers.RepeatedCompositeFieldContainer[TenantService]
    step_model: StepModel
    draining: Draining
    foreground_credit: Credit
    claimed: _containers.RepeatedCompositeFieldContainer[Claimed]
    next_tokens: NextTokens
    def __init__(self, number: _Optional[int] = ..., acknowledged_command: _Optional[int] = ..., hello: _Optional[_Union[Hello, _Mapping]] = ..., proof: _Optional[_Union[Proof, _Mapping]] = ..., updates: _Optional[_Iterable[_Union[SequenceUpdate, _Mapping]]] = ..., returned: _Optional[_Iterable[_Union[Returned, _Mapping]]] = ..., load: _Optional[_Union[Load, _Mapping]] = ..., credit: _Optional[_Union[Credit, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., kv_events: _Optional[_Union[KvEvents, _Mapping]] = ..., kv_snapshot: _Optional[_Union[KvSnapshot, _Mapping]] = ..., tenant_service: _Optional[_Iterable[_Union[TenantService, _Mapping]]] = ..., step_model: _Optional[_Union[StepModel, _Mapping]] = ..., draining: _Optional[_Union[Draining, _Mapping]] = ..., foreground_credit: _Optional[_Union[Credit, _Mapping]] = ..., claimed: _Optional[_Iterable[_Union[Claimed, _Mapping]]] = ..., next_tokens: _Optional[_Union[NextTokens, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("protocol_version", "worker_id", "incarnation", "nonce", "model", "digests", "engine", "engine_version", "device", "kv_spec", "capabilities", "labels", "vocab_size", "eos_token_ids", "held", "held_more", "merges")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    ENGINE_FIELD_NUMBER: _ClassVar[int]
    ENGINE_VERSION_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    KV_SPEC_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    EOS_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    HELD_MORE_FIELD_NUMBER: _ClassVar[int]
    MERGES_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    worker_id: str
    incarnation: int
    nonce: bytes
    model: str
    digests: _types_pb2.ModelDigests
    engine: str
    engine_version: str
    device: str
    kv_spec: KvSpec
    capabilities: _containers.RepeatedScalarFieldContainer[str]
    labels: _containers.ScalarMap[str, str]
    vocab_size: int
    eos_token_ids: _containers.RepeatedScalarFieldContainer[int]
    held: _containers.RepeatedCompositeFieldContainer[HeldRequest]
    held_more: HeldRequests
    merges: bool
    def __init__(self, protocol_version: _Optional[int] = ..., worker_id: _Optional[str] = ..., incarnation: _Optional[int] = ..., nonce: _Optional[bytes] = ..., model: _Optional[str] = ..., digests: _Optional[_Union[_types_pb2.ModelDigests, _Mapping]] = ..., engine: _Optional[str] = ..., engine_version: _Optional[str] = ..., device: _Optional[str] = ..., kv_spec: _Optional[_Union[KvSpec, _Mapping]] = ..., capabilities: _Optional[_Iterable[str]] = ..., labels: _Optional[_Mapping[str, str]] = ..., vocab_size: _Optional[int] = ..., eos_token_ids: _Optional[_Iterable[int]] = ..., held: _Optional[_Iterable[_Union[HeldRequest, _Mapping]]] = ..., held_more: _Optional[_Union[HeldRequests, _Mapping]] = ..., merges: _Optional[bool] = ...) -> None: ...

class KvSpec(_message.Message):
    __slots__ = ("block_tokens", "blocks", "max_sequences", "max_tokens")
    BLOCK_TOKENS_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    MAX_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    block_tokens: int
    blocks: int
    max_sequences: int
    max_tokens: int
    def __init__(self, block_tokens: _Optional[int] = ..., blocks: _Optional[int] = ..., max_sequences: _Optional[int] = ..., max_tokens: _Optional[int] = ...) -> None: ...

class HeldRequest(_message.Message):
    __slots__ = ("request_id", "attempt", "next_index", "slot", "handle")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    NEXT_INDEX_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    attempt: int
    next_index: int
    slot: int
    handle: int
    def __init__(self, request_id: _Optional[str] = ..., attempt: _Optional[int] = ..., next_index: _Optional[int] = ..., slot: _Optional[int] = ..., handle: _Optional[int] = ...) -> None: ...

class HeldRequests(_message.Message):
    __slots__ = ("names", "attempts", "next_indices", "slots", "handles")
    NAMES_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_INDICES_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    HANDLES_FIELD_NUMBER: _ClassVar[int]
    names: _containers.RepeatedScalarFieldContainer[int]
    attempts: _containers.RepeatedScalarFieldContainer[int]
    next_indices: _containers.RepeatedScalarFieldContainer[int]
    slots: _containers.RepeatedScalarFieldContainer[int]
    handles: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, names: _Optional[_Iterable[int]] = ..., attempts: _Optional[_Iterable[int]] = ..., next_indices: _Optional[_Iterable[int]] = ..., slots: _Optional[_Iterable[int]] = ..., handles: _Optional[_Iterable[int]] = ...) -> None: ...

class Proof(_message.Message):
    __slots__ = ("mac",)
    MAC_FIELD_NUMBER: _ClassVar[int]
    mac: bytes
    def __init__(self, mac: _Optional[bytes] = ...) -> None: ...

class RouterFrame(_message.Message):
    __slots__ = ("number", "challenge", "welcome", "submits", "prompt_pieces", "cancels", "demand", "kv_snapshot_wanted", "drain", "acknowledged_frame", "claims", "adoptions")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    CHALLENGE_FIELD_NUMBER: _ClassVar[int]
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    SUBMITS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_PIECES_FIELD_NUMBER: _ClassVar[int]
    CANCELS_FIELD_NUMBER: _ClassVar[int]
    DEMAND_FIELD_NUMBER: _ClassVar[int]
    KV_SNAPSHOT_WANTED_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGED_FRAME_FIELD_NUMBER: _ClassVar[int]
    CLAIMS_FIELD_NUMBER: _ClassVar[int]
    ADOPTIONS_FIELD_NUMBER: _ClassVar[int]
    number: int
    challenge: Challenge
    welcome: Welcome
    submits: _containers.RepeatedCompositeFieldContainer[Submit]
    prompt_pieces: _containers.RepeatedCompositeFieldContainer[PromptPiece]
    cancels: _containers.RepeatedCompositeFieldContainer[Cancel]
    demand: Demand
    kv_snapshot_wanted: bool
    drain: DrainRequest
    acknowledged_frame: int
    claims: _containers.RepeatedCompositeFieldContainer[Claim]
    adoptions: _containers.RepeatedCompositeFieldContainer[Adopt]
    def __init__(self, number: _Optional[int] = ..., challenge: _Optional[_Union[Challenge, _Mapping]] = ..., welcome: _Optional[_Union[Welcome, _Mapping]] = ..., submits: _Optional[_Iterable[_Union[Submit, _Mapping]]] = ..., prompt_pieces: _Optional[_Iterable[_Union[PromptPiece, _Mapping]]] = ..., cancels: _Optional[_Iterable[_Union[Cancel, _Mapping]]] = ..., demand: _Optional[_Union[Demand, _Mapping]] = ..., kv_snapshot_wanted: _Optional[bool] = ..., drain: _Optional[_Union[DrainRequest, _Mapping]] = ..., acknowledged_frame: _Optional[int] = ..., claims: _Optional[_Iterable[_Union[Claim, _Mapping]]] = ..., adoptions: _Optional[_Iterable[_Union[Adopt, _Mapping]]] = ...) -> None: ...

class Challenge(_message.Message):
    __slots__ = ("nonce", "mac")
    NONCE_FIELD_NUMBER: _ClassVar[int]
    MAC_FIELD_NUMBER: _ClassVar[int]
    nonce: bytes
    mac: bytes
    def __init__(self, nonce: _Optional[bytes] = ..., mac: _Optional[bytes] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("router_id", "session_id", "siblings", "heartbeat_ms", "resume_grace_ms", "resume", "orphan_hold_ms", "next_tokens", "token_counts")
    ROUTER_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    SIBLINGS_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_MS_FIELD_NUMBER: _ClassVar[int]
    RESUME_GRACE_MS_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    ORPHAN_HOLD_MS_FIELD_NUMBER: _ClassVar[int]
    NEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_COUNTS_FIELD_NUMBER: _ClassVar[int]
    router_id: str
    session_id: str
    siblings: _containers.RepeatedScalarFieldContainer[str]
    heartbeat_ms: int
    resume_grace_ms: int
    resume: _containers.RepeatedCompositeFieldContainer[ResumeRequest]
    orphan_hold_ms: int
    next_tokens: bool
    token_counts: bool
    def __init__(self, router_id: _Optional[str] = ..., session_id: _Optional[str] = ..., siblings: _Optional[_Iterable[str]] = ..., heartbeat_ms: _Optional[int] = ..., resume_grace_ms: _Optional[int] = ..., resume: _Optional[_Iterable[_Union[ResumeRequest, _Mapping]]] = ..., orphan_hold_ms: _Optional[int] = ..., next_tokens: _Optional[bool] = ..., token_counts: _Optional[bool] = ...) -> None: ...

class ResumeRequest(_message.Message):
    __slots__ = ("request_id", "slot", "attempt", "next_index", "handle")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    NEXT_INDEX_FIELD_NUMBER: _ClassVar[int]
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    slot: int
    attempt: int
    next_index: int
    handle: int
    def __init__(self, request_id: _Optional[str] = ..., slot: _Optional[int] = ..., attempt: _Optional[int] = ..., next_index: _Optional[int] = ..., handle: _Optional[int] = ...) -> None: ...

class Submit(_message.Message):
    __slots__ = ("slot", "request_id", "attempt", "next_index", "prompt_tokens", "prompt_ids", "delivered_ids", "sampling", "max_tokens", "grammar", "latency_class", "remaining_ms", "waited_ms", "ttft_target_ms", "tpot_target_ms", "expected_output_tokens", "kv_key", "public_kv_key", "public_prefix_tokens", "tenant_tag", "traceparent", "claim_key", "router_state", "merge")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    NEXT_INDEX_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_IDS_FIELD_NUMBER: _ClassVar[int]
    DELIVERED_IDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    GRAMMAR_FIELD_NUMBER: _ClassVar[int]
    LATENCY_CLASS_FIELD_NUMBER: _ClassVar[int]
    REMAINING_MS_FIELD_NUMBER: _ClassVar[int]
    WAITED_MS_FIELD_NUMBER: _ClassVar[int]
    TTFT_TARGET_MS_FIELD_NUMBER: _ClassVar[int]
    TPOT_TARGET_MS_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KV_KEY_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_KV_KEY_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_PREFIX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TENANT_TAG_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    CLAIM_KEY_FIELD_NUMBER: _ClassVar[int]
    ROUTER_STATE_FIELD_NUMBER: _ClassVar[int]
    MERGE_FIELD_NUMBER: _ClassVar[int]
    slot: int
    request_id: str
    attempt: int
    next_index: int
    prompt_tokens: int
    prompt_ids: _containers.RepeatedScalarFieldContainer[int]
    delivered_ids: _containers.RepeatedScalarFieldContainer[int]
    sampling: _types_pb2.SamplingParams
    max_tokens: int
    grammar: _types_pb2.Grammar
    latency_class: _types_pb2.LatencyClass
    remaining_ms: int
    waited_ms: int
    ttft_target_ms: int
    tpot_target_ms: int
    expected_output_tokens: int
    kv_key: bytes
    public_kv_key: bytes
    public_prefix_tokens: int
    tenant_tag: bytes
    traceparent: str
    claim_key: bytes
    router_state: bytes
    merge: Merge
    def __init__(self, slot: _Optional[int] = ..., request_id: _Optional[str] = ..., attempt: _Optional[int] = ..., next_index: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., prompt_ids: _Optional[_Iterable[int]] = ..., delivered_ids: _Optional[_Iterable[int]] = ..., sampling: _Optional[_Union[_types_pb2.SamplingParams, _Mapping]] = ..., max_tokens: _Optional[int] = ..., grammar: _Optional[_Union[_types_pb2.Grammar, _Mapping]] = ..., latency_class: _Optional[_Union[_types_pb2.LatencyClass, str]] = ..., remaining_ms: _Optional[int] = ..., waited_ms: _Optional[int] = ..., ttft_target_ms: _Optional[int] = ..., tpot_target_ms: _Optional[int] = ..., expected_output_tokens: _Optional[int] = ..., kv_key: _Optional[bytes] = ..., public_kv_key: _Optional[bytes] = ..., public_prefix_tokens: _Optional[int] = ..., tenant_tag: _Optional[bytes] = ..., traceparent: _Optional[str] = ..., claim_key: _Optional[bytes] = ..., router_state: _Optional[bytes] = ..., merge: _Optional[_Union[Merge, _Mapping]] = ...) -> None: ...

class Merge(_message.Message):
    __slots__ = ("tokens", "wait_ms")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    WAIT_MS_FIELD_NUMBER: _ClassVar[int]
    tokens: int
    wait_ms: int
    def __init__(self, tokens: _Optional[int] = ..., wait_ms: _Optional[int] = ...) -> None: ...

class RouterState(_message.Message):
    __slots__ = ("request", "model", "class_reason", "encode_us")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CLASS_REASON_FIELD_NUMBER: _ClassVar[int]
    ENCODE_US_FIELD_NUMBER: _ClassVar[int]
    request: _router_pb2.GenerateRequest
    model: str
    class_reason: _router_pb2.ClassReason
    encode_us: int
    def __init__(self, request: _Optional[_Union[_router_pb2.GenerateRequest, _Mapping]] = ..., model: _Optional[str] = ..., class_reason: _Optional[_Union[_router_pb2.ClassReason, str]] = ..., encode_us: _Optional[int] = ...) -> None: ...

class Claim(_message.Message):
    __slots__ = ("claim_key", "next_index")
    CLAIM_KEY_FIELD_NUMBER: _ClassVar[int]
    NEXT_INDEX_FIELD_NUMBER: _ClassVar[int]
    claim_key: bytes
    next_index: int
    def __init__(self, claim_key: _Optional[bytes] = ..., next_index: _Optional[int] = ...) -> None: ...

class Claimed(_message.Message):
    __slots__ = ("claim_key", "found", "submit", "handle", "output_tokens", "end", "orphaned", "offset", "ids", "first_logprob", "logprobs", "last")
    CLAIM_KEY_FIELD_NUMBER: _ClassVar[int]
    FOUND_FIELD_NUMBER: _ClassVar[int]
    SUBMIT_FIELD_NUMBER: _ClassVar[int]
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    ORPHANED_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    FIRST_LOGPROB_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    claim_key: bytes
    found: bool
    submit: Submit
    handle: int
    output_tokens: int
    end: SequenceEnd
    orphaned: bool
    offset: int
    ids: _containers.RepeatedScalarFieldContainer[int]
    first_logprob: int
    logprobs: _containers.RepeatedCompositeFieldContainer[_types_pb2.PositionLogprobs]
    last: bool
    def __init__(self, claim_key: _Optional[bytes] = ..., found: _Optional[bool] = ..., submit: _Optional[_Union[Submit, _Mapping]] = ..., handle: _Optional[int] = ..., output_tokens: _Optional[int] = ..., end: _Optional[_Union[SequenceEnd, _Mapping]] = ..., orphaned: _Optional[bool] = ..., offset: _Optional[int] = ..., ids: _Optional[_Iterable[int]] = ..., first_logprob: _Optional[int] = ..., logprobs: _Optional[_Iterable[_Union[_types_pb2.PositionLogprobs, _Mapping]]] = ..., last: _Optional[bool] = ...) -> None: ...

class Adopt(_message.Message):
    __slots__ = ("handle", "slot", "attempt", "next_index", "claim_key", "merge")
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    NEXT_INDEX_FIELD_NUMBER: _ClassVar[int]
    CLAIM_KEY_FIELD_NUMBER: _ClassVar[int]
    MERGE_FIELD_NUMBER: _ClassVar[int]
    handle: int
    slot: int
    attempt: int
    next_index: int
    claim_key: bytes
    merge: Merge
    def __init__(self, handle: _Optional[int] = ..., slot: _Optional[int] = ..., attempt: _Optional[int] = ..., next_index: _Optional[int] = ..., claim_key: _Optional[bytes] = ..., merge: _Optional[_Union[Merge, _Mapping]] = ...) -> None: ...

class PromptPiece(_message.Message):
    __slots__ = ("slot", "attempt", "offset", "ids")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    slot: int
    attempt: int
    offset: int
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, slot: _Optional[int] = ..., attempt: _Optional[int] = ..., offset: _Optional[int] = ..., ids: _Optional[_Iterable[int]] = ...) -> None: ...

class Cancel(_message.Message):
    __slots__ = ("slot", "attempt")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    slot: int
    attempt: int
    def __init__(self, slot: _Optional[int] = ..., attempt: _Optional[int] = ...) -> None: ...

class Demand(_message.Message):
    __slots__ = ("prefill_tokens", "requests", "foreground_prefill_tokens", "foreground_requests")
    PREFILL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    FOREGROUND_PREFILL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FOREGROUND_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    prefill_tokens: int
    requests: int
    foreground_prefill_tokens: int
    foreground_requests: int
    def __init__(self, prefill_tokens: _Optional[int] = ..., requests: _Optional[int] = ..., foreground_prefill_tokens: _Optional[int] = ..., foreground_requests: _Optional[int] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ("grace_ms",)
    GRACE_MS_FIELD_NUMBER: _ClassVar[int]
    grace_ms: int
    def __init__(self, grace_ms: _Optional[int] = ...) -> None: ...

class NextTokens(_message.Message):
    __slots__ = ("slots", "attempts", "indices", "token_ids", "counts")
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    INDICES_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    slots: _containers.RepeatedScalarFieldContainer[int]
    attempts: _containers.RepeatedScalarFieldContainer[int]
    indices: _containers.RepeatedScalarFieldContainer[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    counts: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, slots: _Optional[_Iterable[int]] = ..., attempts: _Optional[_Iterable[int]] = ..., indices: _Optional[_Iterable[int]] = ..., token_ids: _Optional[_Iterable[int]] = ..., counts: _Optional[_Iterable[int]] = ...) -> None: ...

class SequenceUpdate(_message.Message):
    __slots__ = ("slot", "attempt", "first_index", "token_ids", "logprobs", "end")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    FIRST_INDEX_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    slot: int
    attempt: int
    first_index: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: _containers.RepeatedCompositeFieldContainer[_types_pb2.PositionLogprobs]
    end: SequenceEnd
    def __init__(self, slot: _Optional[int] = ..., attempt: _Optional[int] = ..., first_index: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[_Union[_types_pb2.PositionLogprobs, _Mapping]]] = ..., end: _Optional[_Union[SequenceEnd, _Mapping]] = ...) -> None: ...

class SequenceEnd(_message.Message):
    __slots__ = ("reason", "stop_token_id", "usage", "queue_us", "prefill_us", "decode_us", "message")
    REASON_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    QUEUE_US_FIELD_NUMBER: _ClassVar[int]
    PREFILL_US_FIELD_NUMBER: _ClassVar[int]
    DECODE_US_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    reason: EndReason
    stop_token_id: int
    usage: _types_pb2.Usage
    queue_us: int
    prefill_us: int
    decode_us: int
    message: str
    def __init__(self, reason: _Optional[_Union[EndReason, str]] = ..., stop_token_id: _Optional[int] = ..., usage: _Optional[_Union[_types_pb2.Usage, _Mapping]] = ..., queue_us: _Optional[int] = ..., prefill_us: _Optional[int] = ..., decode_us: _Optional[int] = ..., message: _Optional[str] = ...) -> None: ...

class Returned(_message.Message):
    __slots__ = ("slot", "attempt", "reason", "next_index", "retry_ms", "message")
    SLOT_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    NEXT_INDEX_FIELD_NUMBER: _ClassVar[int]
    RETRY_MS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    slot: int
    attempt: int
    reason: ReturnReason
    next_index: int
    retry_ms: int
    message: str
    def __init__(self, slot: _Optional[int] = ..., attempt: _Optional[int] = ..., reason: _Optional[_Union[ReturnReason, str]] = ..., next_index: _Optional[int] = ..., retry_ms: _Optional[int] = ..., message: _Optional[str] = ...) -> None: ...

class Load(_message.Message):
    __slots__ = ("running", "waiting", "waiting_tokens", "kv_blocks_free", "kv_blocks_cached", "kv_blocks_held", "batch_size", "step_tokens", "step_us", "batch_sequences", "batch_waiting_tokens")
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    WAITING_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KV_BLOCKS_FREE_FIELD_NUMBER: _ClassVar[int]
    KV_BLOCKS_CACHED_FIELD_NUMBER: _ClassVar[int]
    KV_BLOCKS_HELD_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    STEP_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STEP_US_FIELD_NUMBER: _ClassVar[int]
    BATCH_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    BATCH_WAITING_TOKENS_FIELD_NUMBER: _ClassVar[int]
    running: int
    waiting: int
    waiting_tokens: int
    kv_blocks_free: int
    kv_blocks_cached: int
    kv_blocks_held: int
    batch_size: int
    step_tokens: int
    step_us: int
    batch_sequences: int
    batch_waiting_tokens: int
    def __init__(self, running: _Optional[int] = ..., waiting: _Optional[int] = ..., waiting_tokens: _Optional[int] = ..., kv_blocks_free: _Optional[int] = ..., kv_blocks_cached: _Optional[int] = ..., kv_blocks_held: _Optional[int] = ..., batch_size: _Optional[int] = ..., step_tokens: _Optional[int] = ..., step_us: _Optional[int] = ..., batch_sequences: _Optional[int] = ..., batch_waiting_tokens: _Optional[int] = ...) -> None: ...

class Credit(_message.Message):
    __slots__ = ("prefill_tokens", "sequences", "kv_blocks")
    PREFILL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    KV_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    prefill_tokens: int
    sequences: int
    kv_blocks: int
    def __init__(self, prefill_tokens: _Optional[int] = ..., sequences: _Optional[int] = ..., kv_blocks: _Optional[int] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("steps", "has_work", "since_last_step_us")
    STEPS_FIELD_NUMBER: _ClassVar[int]
    HAS_WORK_FIELD_NUMBER: _ClassVar[int]
    SINCE_LAST_STEP_US_FIELD_NUMBER: _ClassVar[int]
    steps: int
    has_work: bool
    since_last_step_us: int
    def __init__(self, steps: _Optional[int] = ..., has_work: _Optional[bool] = ..., since_last_step_us: _Optional[int] = ...) -> None: ...

class KvEvents(_message.Message):
    __slots__ = ("first_number", "events")
    FIRST_NUMBER_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    first_number: int
    events: _containers.RepeatedCompositeFieldContainer[KvEvent]
    def __init__(self, first_number: _Optional[int] = ..., events: _Optional[_Iterable[_Union[KvEvent, _Mapping]]] = ...) -> None: ...

class KvEvent(_message.Message):
    __slots__ = ("stored", "removed", "cleared")
    STORED_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    CLEARED_FIELD_NUMBER: _ClassVar[int]
    stored: bytes
    removed: bytes
    cleared: bool
    def __init__(self, stored: _Optional[bytes] = ..., removed: _Optional[bytes] = ..., cleared: _Optional[bool] = ...) -> None: ...

class KvSnapshot(_message.Message):
    __slots__ = ("next_event_number", "digests", "last")
    NEXT_EVENT_NUMBER_FIELD_NUMBER: _ClassVar[int]
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    next_event_number: int
    digests: bytes
    last: bool
    def __init__(self, next_event_number: _Optional[int] = ..., digests: _Optional[bytes] = ..., last: _Optional[bool] = ...) -> None: ...

class TenantService(_message.Message):
    __slots__ = ("tenant_tag", "prompt_tokens", "output_tokens")
    TENANT_TAG_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    tenant_tag: bytes
    prompt_tokens: int
    output_tokens: int
    def __init__(self, tenant_tag: _Optional[bytes] = ..., prompt_tokens: _Optional[int] = ..., output_tokens: _Optional[int] = ...) -> None: ...

class StepModel(_message.Message):
    __slots__ = ("a", "b", "c", "d", "e", "upper_quantile")
    A_FIELD_NUMBER: _ClassVar[int]
    B_FIELD_NUMBER: _ClassVar[int]
    C_FIELD_NUMBER: _ClassVar[int]
    D_FIELD_NUMBER: _ClassVar[int]
    E_FIELD_NUMBER: _ClassVar[int]
    UPPER_QUANTILE_FIELD_NUMBER: _ClassVar[int]
    a: float
    b: float
    c: float
    d: float
    e: float
    upper_quantile: float
    def __init__(self, a: _Optional[float] = ..., b: _Optional[float] = ..., c: _Optional[float] = ..., d: _Optional[float] = ..., e: _Optional[float] = ..., upper_quantile: _Optional[float] = ...) -> None: ...

class Draining(_message.Message):
    __slots__ = ("remaining_ms",)
    REMAINING_MS_FIELD_NUMBER: _ClassVar[int]
    remaining_ms: int
    def __init__(self, remaining_ms: _Optional[int] = ...) -> None: ...
