"""Values in PostgreSQL's binary format, as fields of a row; what cannot be one for sure is refused.

A field is a length and the value's bytes; in a row of an array the type's OID comes before them.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from tracedb.recorder import id_at
from tracedb.records import plain_json

Encoder = Callable[[Any], bytes]

DAY = 86_400_000_000  # in microseconds, as all times here

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_UNIX_EPOCH = 946_684_800_000_000
_TIME = re.compile(
    r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d([.]\d{1,6})?(Z|[+-](0\d|1[0-5]):\d\d)", re.ASCII
)
_UUID = re.compile(r"[0-9a-f]{32}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.I | re.ASCII)
_NUMBER = re.compile(r"(\d{1,30})(?:[.](\d{1,30}))?", re.ASCII)
# NUL characters, and surrogates that may be alone
_UNSTORABLE = re.compile(r"\\u(0000|d[89a-f])", re.I)
_LENGTH = struct.Struct(">i").pack
_INTEGERS = {"int4": (4, "i"), "int8": (8, "q")}
NULL = _LENGTH(-1)
# by the number of digits
_NUMERIC = [struct.Struct(f">hhHH{count}H").pack for count in range(17)]
# A label is likely to come again, a longer text is not; many labels are forgotten together.
_LABEL_LENGTH = 64
_LABELS = 10_000
# More may be nesting that breaks the server's parser before it can refuse the record alone.
_OPENINGS = 1000


class Doubtful(Exception):
    """Not for sure what the server would make of this value; `tracedb.ingest` decides."""


def microseconds(value: object) -> int:
    """A time as PostgreSQL counts it, from 2000."""
    if type(value) is str:
        at = datetime.fromisoformat(value)
        # most are spelled as Python does it in UTC; any other spelling the server must know too
        usual = len(value) == 32 and value[4:20:3] == "--T::." and value.endswith("+00:00")
        if not usual and not _TIME.fullmatch(value):
            raise Doubtful
    elif type(value) is datetime:
        at = value
        if at.tzinfo is not UTC and not _TIME.fullmatch(at.isoformat()):
            raise Doubtful
    else:
        raise Doubtful
    return (at - _EPOCH) // _MICROSECOND


def uuid(value: object) -> bytes:
    if type(value) is str and _UUID.fullmatch(value):
        return bytes.fromhex(value.replace("-", ""))
    if type(value) is UUID:
        return value.bytes
    raise Doubtful


def is_id(value: str) -> bool:
    """Whether a text may be an id of 128 bits."""
    return _UUID.fullmatch(value) is not None


def is_uuid7(found: bytes) -> bool:
    return found[6] >> 4 == 7 and found[8] >> 6 == 2


def uuid_time(found: bytes) -> int:
    """The time in a UUIDv7, as `microseconds` gives it."""
    return int.from_bytes(found[:6], "big") * 1000 - _UNIX_EPOCH


def uuid_from_key(time: int, key: str) -> bytes:
    """As `tracedb.uuid_from_key`, for a time as `microseconds` gives it."""
    return bytes.fromhex(id_at((time + _UNIX_EPOCH) // 1000, key))


def span_id(value: object) -> bytes:
    if type(value) is str and len(value) == 16:
        found = bytes.fromhex(value)
        # spaces are no digits, and 0 is no id
        if len(found) == 8 and any(found):
            return found
    raise Doubtful


def text(value: object) -> bytes:
    if type(value) is not str or "\0" in value:
        raise Doubtful
    return value.encode()


def texts(value: object) -> bytes:
    """A text[]."""
    if type(value) is not list:
        raise Doubtful
    items = [text(item) for item in value]
    if not items:
        return struct.pack(">iiI", 0, 0, 25)
    head = struct.pack(">iiIii", 1, 0, 25, len(items), 1)
    return head + b"".join([_LENGTH(len(item)) + item for item in items])


def boolean(value: object) -> bytes:
    if type(value) is not bool:
        raise Doubtful
    return b"\1" if value else b"\0"


def double(value: object) -> bytes:
    if type(value) not in (int, float):
        raise Doubtful
    # + 0.0: JSON's -0.0 is 0 to the server
    return struct.pack(">d", float(value) + 0.0)  # type: ignore[arg-type]


def numeric(value: object) -> bytes:
    kind = type(value)
    if kind not in (str, int, float, Decimal):
        raise Doubtful
    spelled = str(value)
    found = _NUMBER.fullmatch(spelled)
    if found is None and kind is not str:
        number = Decimal(spelled)
        if -30 <= number.adjusted() <= 30:
            found = _NUMBER.fullmatch(format(number, "f"))
    if found is None:
        raise Doubtful
    whole, fraction = found[1], found[2] or ""
    # digits to the base of 10,000, counted from the point
    groups = -(-len(fraction) // 4)
    rest = int(whole + fraction.ljust(groups * 4, "0"))
    digits = []
    while rest:
        rest, digit = divmod(rest, 10_000)
        digits.append(digit)
    count = len(digits)
    return _NUMERIC[count](count, count - 1 - groups, 0, len(fraction), *reversed(digits))


def jsonb(value: object) -> bytes:
    written = plain_json(value)
    if "\\u" in written and _UNSTORABLE.search(written):
        raise Doubtful
    if len(written) > _OPENINGS and written.count("{") + written.count("[") > _OPENINGS:
        raise Doubtful
    return b"\1" + written.encode()


def vector(value: object) -> bytes:
    if type(value) is not list or not 1 <= len(value) <= 16_000:
        raise Doubtful
    if any(type(item) not in (int, float) for item in value):
        raise Doubtful
    doubles = [float(item) + 0.0 for item in value]
    form = struct.Struct(f">{len(doubles)}f")
    packed = form.pack(*doubles)
    singles = form.unpack(packed)
    # A double halfway between two singles may stem from a text that is not; tiny ones may be 0.
    others = [2 * double - single for double, single in zip(doubles, singles, strict=True)]
    nearest = form.unpack(form.pack(*others))
    for single, other, near in zip(singles, others, nearest, strict=True):
        if (other == near and other != single) or 0 < abs(single) < 1.2e-38:
            raise Doubtful
    return struct.pack(">HH", len(doubles), 0) + packed


def json_object(value: object) -> bytes:
    if type(value) is not dict:
        raise Doubtful
    return jsonb(value)


def text_set(value: object) -> bytes:
    """A text[] in order and without repetitions."""
    if type(value) is not list:
        raise Doubtful
    return texts(sorted(set(value)))


ENCODERS: dict[str, Encoder] = {
    "uuid": uuid,
    "bytea": span_id,
    "text": text,
    "_text": texts,
    "set": text_set,
    "bool": boolean,
    "float8": double,
    "numeric": numeric,
    "jsonb": jsonb,
    "object": json_object,
    "vector": vector,
}


def field(form: str, empty: bytes = NULL) -> Encoder:
    """What makes the field of a value: its length and its bytes; `empty` if there is none."""
    if form in _INTEGERS:
        # the most frequent, in one step
        size, letter = _INTEGERS[form]
        pack = struct.Struct(f">i{letter}").pack

        def integer(value: Any) -> bytes:
            if type(value) is int:
                return pack(size, value)
            if value is None:
                return empty
            raise Doubtful

        return integer

    encode = ENCODERS["jsonb" if form == "intent" else form]

    def encoded(value: Any) -> bytes:
        if value is None:
            return empty
        data = encode(value)
        return _LENGTH(len(data)) + data

    def intent(value: Any) -> bytes:
        found = encoded(value)
        # what says nothing is not stored
        return empty if found[4:] in (b"\1[]", b"\1false") else found

    return intent if form == "intent" else encoded


def text_field(value: object) -> bytes:
    data = text(value)
    return _LENGTH(len(data)) + data


class Labels(dict[str | None, bytes]):
    """The fields of short texts that come again and again."""

    def __init__(self) -> None:
        self[None] = NULL

    def __missing__(self, value: str) -> bytes:
        found = text_field(value)
        if len(value) <= _LABEL_LENGTH:
            if len(self) == _LABELS:
                self.clear()
                self[None] = NULL
            self[value] = found
        return found


def _float(spelled: str) -> float:
    """A fraction that is written in JSON just as it was read."""
    value = float(spelled)
    if repr(value) != spelled:
        raise Doubtful
    return value


def _constant(name: str) -> None:
    raise Doubtful


_DECODE = json.JSONDecoder(parse_float=_float, parse_constant=_constant).decode


def parsed(record: bytes) -> dict[str, Any]:
    """A record from its JSON text, such as `records.as_json` writes it."""
    found = _DECODE(record.decode())
    if type(found) is not dict:
        raise Doubtful
    return found
