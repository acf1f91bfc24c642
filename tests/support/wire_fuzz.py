"""Arbitrary protobuf messages, made from their descriptors, and what bad wires do to real ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

Kind = TypeVar("Kind", bound=Message)
Values = st.SearchStrategy[Any]
MOST_REPEATED = 3
MOST_FIELDS = 5
"""Of one message, at a time."""
DEEPEST = 4
_SMALL = st.integers(0, 4)
_WHOLE: dict[int, tuple[int, int]] = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_ENUM: (-3, 2**31 - 1),
}


def messages(kind: type[Kind], likely: Mapping[str, Values] | None = None) -> st.SearchStrategy[Kind]:
    """Any message of a kind, with a few of its fields.

    `likely`: values that are often to be met, by the field's name, or by Message.field.
    """
    made: st.SearchStrategy[Kind] = _message(_Recipe(kind.DESCRIPTOR, likely or {}, DEEPEST))
    return made


def whole_messages(kind: type[Kind], likely: Mapping[str, Values]) -> st.SearchStrategy[Kind]:
    """Messages of a kind that have all of the fields that are named in `likely`, with those values."""
    return st.fixed_dictionaries(dict(likely)).map(lambda values: kind(**values))


class _Recipe:
    """How to make a message: strategies of its fields. Its repr stays short, however much it says."""

    def __init__(self, kind: Descriptor, likely: Mapping[str, Values], depth: int) -> None:
        self.make = GetMessageClass(kind)
        self.fields = {each.name: _field(each, likely, depth) for each in kind.fields if _fits(each, depth)}
        self.names = st.sets(st.sampled_from(sorted(self.fields)), max_size=MOST_FIELDS)


@st.composite
def _message(draw: st.DrawFn, recipe: _Recipe) -> Any:
    names = sorted(draw(recipe.names)) if recipe.fields else ()
    return recipe.make(**{name: draw(recipe.fields[name]) for name in names})


def _fits(field: FieldDescriptor, depth: int) -> bool:
    return depth > 0 or field.message_type is None


def _field(field: FieldDescriptor, likely: Mapping[str, Values], depth: int) -> Values:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
        return st.dictionaries(
            _one(key, likely, depth - 1), _one(value, likely, depth - 1), max_size=MOST_REPEATED
        )
    one = _one(field, likely, depth)
    return st.lists(one, max_size=MOST_REPEATED) if field.is_repeated else one


def _one(field: FieldDescriptor, likely: Mapping[str, Values], depth: int) -> Values:
    wild = _wild(field, likely, depth)
    full_name = f"{field.containing_type.name}.{field.name}"
    known = likely.get(full_name, likely.get(field.name))
    return wild if known is None else st.one_of(known, known, wild)


def _wild(field: FieldDescriptor, likely: Mapping[str, Values], depth: int) -> Values:
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_MESSAGE:
        assert field.message_type is not None
        return _message(_Recipe(field.message_type, likely, depth - 1))
    if kind in _WHOLE:
        low, high = _WHOLE[kind]
        return st.one_of(
            _SMALL, st.sampled_from([low, high, high - 1, high // 2 + 1]), st.integers(low, high)
        )
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    if field.type == FieldDescriptor.TYPE_BYTES:
        return st.binary(max_size=40) | st.sampled_from([bytes(16), b"k" * 32])
    if kind == FieldDescriptor.CPPTYPE_STRING:
        return st.text(max_size=8) | st.integers(100, 5000).map("x".__mul__)
    return st.floats(width=32 if kind == FieldDescriptor.CPPTYPE_FLOAT else 64)


class Act(NamedTuple):
    """What a bad wire does to one frame that it carries."""

    name: str
    place: float = 0.0
    """Where in the frame, or in what went before: from 0, its beginning, to 1."""
    value: int = 0


PASS = Act("pass")
LOSSY = ("drop", "double", "replay", "hold")
"""Acts that change no frame: none, twice, an old one once more, the next one first."""
CORRUPT = ("flip", "cut", "insert")
"""Acts that change a frame's bytes."""


def acts(*names: str) -> st.SearchStrategy[Act]:
    """One of these acts, or none."""
    bad = st.builds(Act, st.sampled_from(names), st.floats(0, 1), st.integers(0, 255))
    return st.one_of(st.just(PASS), bad)


class BadWire:
    """Carries frames in order, one act a frame; with no act left it is a good wire."""

    def __init__(self, plan: list[Act]) -> None:
        self._plan = list(reversed(plan))
        self._past: list[bytes] = []
        self._held: list[bytes] = []
        self._deeds: dict[str, Callable[[bytes, Act], list[bytes]]] = {
            "pass": lambda frame, _: [frame],
            "drop": lambda frame, _: [],
            "double": lambda frame, _: [frame, frame],
            "replay": lambda frame, act: [frame, self._past[int(act.place * (len(self._past) - 1))]],
            "hold": self._hold,
            "flip": lambda frame, act: [_replaced(frame, act, 1)],
            "insert": lambda frame, act: [_replaced(frame, act, 0)],
            "cut": lambda frame, act: [frame[: int(act.place * len(frame))]],
        }

    def carry(self, frame: bytes) -> list[bytes]:
        """What arrives in the place of a frame."""
        act = self._plan.pop() if self._plan else PASS
        self._past.append(frame)
        held, self._held = self._held, []
        return self._deeds[act.name](frame, act) + held

    def _hold(self, frame: bytes, _: Act) -> list[bytes]:
        self._held = [frame]
        return []


def _replaced(frame: bytes, act: Act, count: int) -> bytes:
    place = int(act.place * max(0, len(frame) - 1))
    return frame[:place] + bytes([act.value]) + frame[place + count :]
