"""Values in PostgreSQL's binary format, as fields of a row; what cannot be one for sure is refused.

A field is a length and the value's bytes, in a row of an array with the type's OID before them.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Set
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from tracedb.records import plain_json

Encoder = Callable[[Any], bytes]

DAY = 86_400_000_000  # in microseconds, as all times here

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_UNIX_EPOCH = 946_684_800_000_000
_TIME = re.compile(
    r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d([.]\d{1,6})?(Z|[+-](0\d|1[0-5]):\d\d)", re.ASCII
)
_UUID = re.compile(r"[0-9a-f]{32}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.I | re.ASCII)
_NUMBER = re.compile(r"(\d{1,30})(?:[.](\d{1,30}))?", re.ASCII)
# NUL characters, and surrogates that may be alone
_UNSTORABLE = re.compile(r"\\u(0000|d[89a-f])", re.I)
_LENGTH = struct.Struct(">i").pack
# A label is likely to come again, a longer text is not; many labels are forgotten together.
_LABEL_LENGTH = 64
_LABELS = 10_000
# More may be nesting that breaks the server's parser before it can refuse the record alone.
_OPENINGS = 1000


class Doubtful(Exception):
    """Not for sure what the server would make of this value; `tracedb.ingest` decides."""


class JsonText(str):
    """The text of a JSON document, checked to be one."""

    __slots__ = ()


class JsonNumber(str):
    """The text of a JSON number with a fraction or an exponent, checked to be one."""

    __slots__ = ()


def microseconds(value: object) -> int:
    """A time as PostgreSQL counts it, from 2000."""
    if type(value) is str:
        at = datetime.fromisoformat(value)
        # most are spelled as Python does it in UTC; any other spelling the server must know too
        usual = value.endswith("+00:00") and at.isoformat() == value
        if not usual and not _TIME.fullmatch(value):
            raise Doubtful
    elif type(value) is datetime:
        at = value
        if at.tzinfo is not UTC and not _TIME.fullmatch(at.isoformat()):
            raise Doubtful
    else:
        raise Doubtful
    since = at - _EPOCH
    return (since.days * 86400 + since.seconds) * 1_000_000 + since.microseconds


def uuid(value: object) -> bytes:
    if type(value) is str and _UUID.fullmatch(value):
        return bytes.fromhex(value.replace("-", ""))
    if type(value) is UUID:
        return value.bytes
    raise Doubtful


def uuid7(value: object) -> bytes:
    found = uuid(value)
    if found[6] >> 4 != 7 or found[8] >> 6 != 2:
        raise Doubtful
    return found


def uuid_time(found: bytes) -> int:
    """The time in a UUIDv7, as `microseconds` gives it."""
    return int.from_bytes(found[:6], "big") * 1000 - _UNIX_EPOCH


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
    if type(value) not in (int, float, JsonNumber):
        raise Doubtful
    # + 0.0: JSON's -0.0 is 0 to the server
    return struct.pack(">d", float(value) + 0.0)  # type: ignore[arg-type]


def numeric(value: object) -> bytes:
    kind = type(value)
    if kind not in (str, JsonNumber, int, float, Decimal):
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
    groups = -(-len(whole) // 4)
    padded = whole.zfill(groups * 4) + fraction + "0" * (-len(fraction) % 4)
    digits = [int(padded[n : n + 4]) for n in range(0, len(padded), 4)]
    return struct.pack(f">hhHH{len(digits)}H", len(digits), groups - 1, 0, len(fraction), *digits)


def jsonb(value: object) -> bytes:
    written = str(value) if type(value) in (JsonText, JsonNumber) else plain_json(value)
    if "\\u" in written and _UNSTORABLE.search(written):
        raise Doubtful
    if len(written) > _OPENINGS and written.count("{") + written.count("[") > _OPENINGS:
        raise Doubtful
    return b"\1" + written.encode()


def vector(value: object) -> bytes:
    if type(value) is not list or not 1 <= len(value) <= 16_000:
        raise Doubtful
    if any(type(item) not in (int, float, JsonNumber) for item in value):
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


_INTEGERS = {"int4": 4, "int8": 8}
ENCODERS: dict[str, Encoder] = {
    "uuid": uuid,
    "bytea": span_id,
    "text": text,
    "_text": texts,
    "timestamptz": lambda value: struct.pack(">q", microseconds(value)),
    "bool": boolean,
    "float8": double,
    "numeric": numeric,
    "jsonb": jsonb,
    "vector": vector,
}


def field(head: bytes, type_: str) -> Encoder:
    """What makes the whole field of a value: `head` (the OID), length and bytes."""
    if type_ in _INTEGERS:
        # the most frequent, in one step
        size = _INTEGERS[type_]
        pack = struct.Struct(f">{len(head)}si{'q' if size == 8 else 'i'}").pack

        def integer(value: Any) -> bytes:
            if type(value) is not int:
                raise Doubtful
            return pack(head, size, value)

        return integer

    encode = ENCODERS[type_]

    def encoded(value: Any) -> bytes:
        data = encode(value)
        return b"%b%b%b" % (head, _LENGTH(len(data)), data)

    return encoded


class Labels(dict[str, bytes]):
    """The fields of short texts that come again and again."""

    def __init__(self, head: bytes) -> None:
        self._encode = field(head, "text")

    def __missing__(self, value: str) -> bytes:
        found = self._encode(value)
        if len(value) <= _LABEL_LENGTH:
            if len(self) == _LABELS:
                self.clear()
            self[value] = found
        return found


def _number(spelled: str) -> JsonNumber:
    if len(spelled) > 60 or not -300 < Decimal(spelled).adjusted() < 300:
        raise Doubtful
    return JsonNumber(spelled)


def _constant(name: str) -> None:
    raise Doubtful


_SCAN = json.JSONDecoder(parse_float=_number, parse_constant=_constant).scan_once  # type: ignore[attr-defined]
_KEY = re.compile(r'\s*"([a-z_]+)"\s*:\s*')


def parsed(record: str, lists: Set[str]) -> dict[str, Any]:
    """A record from its JSON text: objects and arrays as `JsonText`, but for these lists."""
    found: dict[str, Any] = {}
    end = 0
    if not record.startswith("{"):
        raise Doubtful
    while record[end] != "}":
        key = _KEY.match(record, end + 1)
        if key is None:
            raise Doubtful
        start = key.end()
        value, end = _SCAN(record, start)
        if isinstance(value, dict | list) and key[1] not in lists:
            value = JsonText(record[start:end])
        found[key[1]] = value
        if record[end] not in ",}":
            raise Doubtful
    if end != len(record) - 1:
        raise Doubtful
    return found
