from headrace.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EncodeFailureReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ENCODE_FAILURE_REASON_UNSPECIFIED: _ClassVar[EncodeFailureReason]
    ENCODE_FAILURE_REASON_INVALID_TEXT: _ClassVar[EncodeFailureReason]
    ENCODE_FAILURE_REASON_TEMPLATE: _ClassVar[EncodeFailureReason]
    ENCODE_FAILURE_REASON_TIMEOUT: _ClassVar[EncodeFailureReason]
    ENCODE_FAILURE_REASON_TOO_LONG: _ClassVar[EncodeFailureReason]
    ENCODE_FAILURE_REASON_OVERLOADED: _ClassVar[EncodeFailureReason]
ENCODE_FAILURE_REASON_UNSPECIFIED: EncodeFailureReason
ENCODE_FAILURE_REASON_INVALID_TEXT: EncodeFailureReason
ENCODE_FAILURE_REASON_TEMPLATE: EncodeFailureReason
ENCODE_FAILURE_REASON_TIMEOUT: EncodeFailureReason
ENCODE_FAILURE_REASON_TOO_LONG: EncodeFailureReason
ENCODE_FAILURE_REASON_OVERLOADED: EncodeFailureReason

class EncodeRequest(_message.Message):
    __slots__ = ("model", "items", "scope_digest", "tenant_tag")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    SCOPE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    TENANT_TAG_FIELD_NUMBER: _ClassVar[int]
    model: str
    items: _containers.RepeatedCompositeFieldContainer[EncodeItem]
    scope_digest: bytes
    tenant_tag: bytes
    def __init__(self, model: _Optional[str] = ..., items: _Optional[_Iterable[_Union[EncodeItem, _Mapping]]] = ..., scope_digest: _Optional[bytes] = ..., tenant_tag: _Optional[bytes] = ...) -> None: ...

class EncodeItem(_message.Message):
    __slots__ = ("text", "chat", "add_special_tokens", "max_tokens")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    CHAT_FIELD_NUMBER: _ClassVar[int]
    ADD_SPECIAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    text: str
    chat: _types_pb2.ChatMessages
    add_special_tokens: bool
    max_tokens: int
    def __init__(self, text: _Optional[str] = ..., chat: _Optional[_Union[_types_pb2.ChatMessages, _Mapping]] = ..., add_special_tokens: _Optional[bool] = ..., max_tokens: _Optional[int] = ...) -> None: ...

class EncodeResponse(_message.Message):
    __slots__ = ("items", "digests")
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[EncodedItem]
    digests: _types_pb2.ModelDigests
    def __init__(self, items: _Optional[_Iterable[_Union[EncodedItem, _Mapping]]] = ..., digests: _Optional[_Union[_types_pb2.ModelDigests, _Mapping]] = ...) -> None: ...

class EncodedItem(_message.Message):
    __slots__ = ("ids", "failure")
    IDS_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    failure: EncodeFailure
    def __init__(self, ids: _Optional[_Iterable[int]] = ..., failure: _Optional[_Union[EncodeFailure, _Mapping]] = ...) -> None: ...

class EncodeFailure(_message.Message):
    __slots__ = ("reason", "message")
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    reason: EncodeFailureReason
    message: str
    def __init__(self, reason: _Optional[_Union[EncodeFailureReason, str]] = ..., message: _Optional[str] = ...) -> None: ...

class DecodeRequest(_message.Message):
    __slots__ = ("model", "items", "skip_special_tokens")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    SKIP_SPECIAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    model: str
    items: _containers.RepeatedCompositeFieldContainer[_types_pb2.TokenIds]
    skip_special_tokens: bool
    def __init__(self, model: _Optional[str] = ..., items: _Optional[_Iterable[_Union[_types_pb2.TokenIds, _Mapping]]] = ..., skip_special_tokens: _Optional[bool] = ...) -> None: ...

class DecodeResponse(_message.Message):
    __slots__ = ("texts",)
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    texts: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, texts: _Optional[_Iterable[str]] = ...) -> None: ...

class GetTokenizerRequest(_message.Message):
    __slots__ = ("model", "known_digest")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    KNOWN_DIGEST_FIELD_NUMBER: _ClassVar[int]
    model: str
    known_digest: bytes
    def __init__(self, model: _Optional[str] = ..., known_digest: _Optional[bytes] = ...) -> None: ...

class GetTokenizerResponse(_message.Message):
    __slots__ = ("description", "chunk")
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    description: TokenizerDescription
    chunk: bytes
    def __init__(self, description: _Optional[_Union[TokenizerDescription, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class TokenizerDescription(_message.Message):
    __slots__ = ("model", "digests", "file_bytes", "vocab_size", "eos_token_ids", "context_length", "chat", "tells_time")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    FILE_BYTES_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    EOS_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    CHAT_FIELD_NUMBER: _ClassVar[int]
    TELLS_TIME_FIELD_NUMBER: _ClassVar[int]
    model: str
    digests: _types_pb2.ModelDigests
    file_bytes: int
    vocab_size: int
    eos_token_ids: _containers.RepeatedScalarFieldContainer[int]
    context_length: int
    chat: bool
    tells_time: bool
    def __init__(self, model: _Optional[str] = ..., digests: _Optional[_Union[_types_pb2.ModelDigests, _Mapping]] = ..., file_bytes: _Optional[int] = ..., vocab_size: _Optional[int] = ..., eos_token_ids: _Optional[_Iterable[int]] = ..., context_length: _Optional[int] = ..., chat: _Optional[bool] = ..., tells_time: _Optional[bool] = ...) -> None: ...
