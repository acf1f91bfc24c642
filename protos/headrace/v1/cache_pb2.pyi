from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CacheKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CACHE_KIND_UNSPECIFIED: _ClassVar[CacheKind]
    CACHE_KIND_RESPONSE: _ClassVar[CacheKind]
    CACHE_KIND_ENCODING: _ClassVar[CacheKind]
CACHE_KIND_UNSPECIFIED: CacheKind
CACHE_KIND_RESPONSE: CacheKind
CACHE_KIND_ENCODING: CacheKind

class LookupRequest(_message.Message):
    __slots__ = ("kind", "keys")
    KIND_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    kind: CacheKind
    keys: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, kind: _Optional[_Union[CacheKind, str]] = ..., keys: _Optional[_Iterable[bytes]] = ...) -> None: ...

class LookupResponse(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[LookupResult]
    def __init__(self, results: _Optional[_Iterable[_Union[LookupResult, _Mapping]]] = ...) -> None: ...

class LookupResult(_message.Message):
    __slots__ = ("value",)
    VALUE_FIELD_NUMBER: _ClassVar[int]
    value: bytes
    def __init__(self, value: _Optional[bytes] = ...) -> None: ...

class StoreRequest(_message.Message):
    __slots__ = ("kind", "entries")
    KIND_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    kind: CacheKind
    entries: _containers.RepeatedCompositeFieldContainer[StoreEntry]
    def __init__(self, kind: _Optional[_Union[CacheKind, str]] = ..., entries: _Optional[_Iterable[_Union[StoreEntry, _Mapping]]] = ...) -> None: ...

class StoreEntry(_message.Message):
    __slots__ = ("key", "value", "tenant_tag", "ttl_s")
    KEY_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    TENANT_TAG_FIELD_NUMBER: _ClassVar[int]
    TTL_S_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    value: bytes
    tenant_tag: bytes
    ttl_s: int
    def __init__(self, key: _Optional[bytes] = ..., value: _Optional[bytes] = ..., tenant_tag: _Optional[bytes] = ..., ttl_s: _Optional[int] = ...) -> None: ...

class StoreResponse(_message.Message):
    __slots__ = ("accepted",)
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    accepted: int
    def __init__(self, accepted: _Optional[int] = ...) -> None: ...

class ForgetRequest(_message.Message):
    __slots__ = ("tenant_tag",)
    TENANT_TAG_FIELD_NUMBER: _ClassVar[int]
    tenant_tag: bytes
    def __init__(self, tenant_tag: _Optional[bytes] = ...) -> None: ...

class ForgetResponse(_message.Message):
    __slots__ = ("removed",)
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    removed: int
    def __init__(self, removed: _Optional[int] = ...) -> None: ...

class LeaseQuotaRequest(_message.Message):
    __slots__ = ("router_id", "claims")
    ROUTER_ID_FIELD_NUMBER: _ClassVar[int]
    CLAIMS_FIELD_NUMBER: _ClassVar[int]
    router_id: str
    claims: _containers.RepeatedCompositeFieldContainer[QuotaClaim]
    def __init__(self, router_id: _Optional[str] = ..., claims: _Optional[_Iterable[_Union[QuotaClaim, _Mapping]]] = ...) -> None: ...

class QuotaClaim(_message.Message):
    __slots__ = ("tenant_tag", "quota", "units_per_minute", "burst_units", "wanted_units", "returned_units", "used_units")
    TENANT_TAG_FIELD_NUMBER: _ClassVar[int]
    QUOTA_FIELD_NUMBER: _ClassVar[int]
    UNITS_PER_MINUTE_FIELD_NUMBER: _ClassVar[int]
    BURST_UNITS_FIELD_NUMBER: _ClassVar[int]
    WANTED_UNITS_FIELD_NUMBER: _ClassVar[int]
    RETURNED_UNITS_FIELD_NUMBER: _ClassVar[int]
    USED_UNITS_FIELD_NUMBER: _ClassVar[int]
    tenant_tag: bytes
    quota: str
    units_per_minute: float
    burst_units: float
    wanted_units: float
    returned_units: float
    used_units: float
    def __init__(self, tenant_tag: _Optional[bytes] = ..., quota: _Optional[str] = ..., units_per_minute: _Optional[float] = ..., burst_units: _Optional[float] = ..., wanted_units: _Optional[float] = ..., returned_units: _Optional[float] = ..., used_units: _Optional[float] = ...) -> None: ...

class LeaseQuotaResponse(_message.Message):
    __slots__ = ("leases",)
    LEASES_FIELD_NUMBER: _ClassVar[int]
    leases: _containers.RepeatedCompositeFieldContainer[QuotaLease]
    def __init__(self, leases: _Optional[_Iterable[_Union[QuotaLease, _Mapping]]] = ...) -> None: ...

class QuotaLease(_message.Message):
    __slots__ = ("granted_units", "valid_ms", "retry_ms")
    GRANTED_UNITS_FIELD_NUMBER: _ClassVar[int]
    VALID_MS_FIELD_NUMBER: _ClassVar[int]
    RETRY_MS_FIELD_NUMBER: _ClassVar[int]
    granted_units: float
    valid_ms: int
    retry_ms: int
    def __init__(self, granted_units: _Optional[float] = ..., valid_ms: _Optional[int] = ..., retry_ms: _Optional[int] = ...) -> None: ...

class SaveSnapshotRequest(_message.Message):
    __slots__ = ("name", "chunk", "ttl_s")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    TTL_S_FIELD_NUMBER: _ClassVar[int]
    name: str
    chunk: bytes
    ttl_s: int
    def __init__(self, name: _Optional[str] = ..., chunk: _Optional[bytes] = ..., ttl_s: _Optional[int] = ...) -> None: ...

class SaveSnapshotResponse(_message.Message):
    __slots__ = ("stored_bytes",)
    STORED_BYTES_FIELD_NUMBER: _ClassVar[int]
    stored_bytes: int
    def __init__(self, stored_bytes: _Optional[int] = ...) -> None: ...

class LoadSnapshotRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class LoadSnapshotResponse(_message.Message):
    __slots__ = ("chunk",)
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    chunk: bytes
    def __init__(self, chunk: _Optional[bytes] = ...) -> None: ...
