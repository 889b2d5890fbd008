"""Records on their way to the database: checked and written as JSON, one bad one at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from json.encoder import c_make_encoder, encode_basestring  # type: ignore[attr-defined]
from math import isfinite
from typing import Any
from uuid import UUID

from tracedb.errors import InvalidInput
from tracedb.rows import Rejection

Record = Mapping[str, Any]

MAX_RECORDS = 1000
MAX_BATCH_BYTES = 32 * 1024 * 1024
# as in `tracedb.store_records`: what is larger need not travel to be refused
MAX_RECORD_BYTES = 20 * 1024 * 1024
# as in `tracedb.is_readable`
MAX_DEPTH = 100
MAX_NUMBER = 10**308

# More openings than this may be nesting deep enough to break the server's parser, and with it the
# batch; up to it the server refuses the record alone.
_SUSPICIOUS_OPENINGS = 1000


@dataclass(frozen=True, slots=True)
class Batch:
    """Records as one JSON array, where each stood in the call, and those refused on this side."""

    json: str
    positions: tuple[int, ...]
    rejected: tuple[Rejection, ...]


def batches(records: Iterable[Record], first: int = 0) -> Iterator[Batch]:
    """Cut records into batches of at most 1,000 records and 32 MiB, in order.

    `first` is the position of the first record.

    What cannot be sent is refused here, record by record, in the words of `tracedb.ingest`.
    """
    texts: list[str] = []
    positions: list[int] = []
    rejected: list[Rejection] = []
    size = 0

    def cut() -> Batch:
        nonlocal size
        batch = Batch(f"[{','.join(texts)}]", tuple(positions), tuple(rejected))
        texts.clear()
        positions.clear()
        rejected.clear()
        size = 0
        return batch

    for index, record in enumerate(records, first):
        try:
            text = as_json(record)
        except InvalidInput as error:
            rejected.append(Rejection(index, str(error)))
        else:
            if texts and size + len(text) > MAX_BATCH_BYTES:
                yield cut()
            texts.append(text)
            positions.append(index)
            size += len(text)
        if len(texts) + len(rejected) >= MAX_RECORDS:
            yield cut()
    if texts or rejected:
        yield cut()


def as_json(record: Record) -> str:
    """A record as JSON that PostgreSQL can store; InvalidInput ("field: rule") if it cannot be.

    Besides JSON's own types a record may hold UUID and aware datetime values, Decimal (written as a
    string, which keeps every digit), bytes (written as hex digits), tuples, sets, and vectors of
    numpy or pgvector. NUL characters and lone surrogates, which PostgreSQL cannot store, become
    U+FFFD.
    """
    try:
        text = plain_json(record)
        size = len(text.encode())
        doubtful = "\\u0000" in text or text.count("{") + text.count("[") > _SUSPICIOUS_OPENINGS
    except (TypeError, ValueError, RecursionError):
        # a UnicodeEncodeError is a ValueError too
        doubtful = True
    if doubtful:
        # the slow way: names the field at fault, or mends its text
        text = plain_json(_mended(record, "", -1))
        size = len(text.encode())
    if size > MAX_RECORD_BYTES:
        raise InvalidInput.of("record", "at most 20 MiB as JSON")
    return text


def plain(value: object) -> object:
    """A value as JSON's own type; TypeError if there is none."""
    match value:
        case UUID() | Decimal():
            return str(value)
        case datetime() if value.tzinfo is not None:
            return value.isoformat()
        case bytes() | bytearray() | memoryview():
            return bytes(value).hex()
        case Mapping():
            return dict(value)
        case set() | frozenset():
            return sorted(value, key=str)
    for name in ("tolist", "to_list"):
        if hasattr(value, name):
            return getattr(value, name)()
    raise TypeError(type(value).__name__)


def _encoder() -> Callable[[object], str]:
    if c_make_encoder is None:
        return json.JSONEncoder(
            default=plain, allow_nan=False, ensure_ascii=False, separators=(",", ":")
        ).encode
    # What JSONEncoder.encode makes anew for each value, at a fifth of a record's time.
    encode = c_make_encoder(None, plain, encode_basestring, None, ":", ",", False, False, False)
    return lambda value: "".join(encode(value, 0))


# A value as JSON; TypeError, ValueError or RecursionError if it is not as simple as that.
plain_json = _encoder()


def mended_text(text: str) -> str:
    """The text with what PostgreSQL cannot store, NUL and lone surrogates, as U+FFFD."""
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return whole.replace("\0", "\ufffd")


def _mended(value: object, path: str, level: int) -> object:
    """A copy of a value that JSON and PostgreSQL can hold; InvalidInput names what they cannot.

    `level` is the nesting below the record's field, -1 for the record itself.
    """
    field = path or "record"
    if level >= MAX_DEPTH:
        raise too_deep(path)
    match value:
        case None | bool():
            return value
        case str():
            return mended_text(value)
        case int():
            if abs(value) > MAX_NUMBER:
                raise InvalidInput.of(field, "numbers within 1e308")
            return value
        case float():
            if not isfinite(value):
                raise InvalidInput.of(field, f"must be a finite number, not {value}")
            return value
        case Mapping():
            return {
                _key(key, field): _mended(
                    item, f"{path}.{_key(key, field)}" if path else _key(key, field), level + 1
                )
                for key, item in value.items()
            }
        case list() | tuple():
            return [_mended(item, f"{field}[{n}]", level + 1) for n, item in enumerate(value)]
        case datetime() if value.tzinfo is None:
            raise InvalidInput.of(field, "must be an aware datetime (with its time zone)")
    try:
        written = plain(value)
    except TypeError as error:
        raise InvalidInput.of(field, f"a {error} is not JSON") from None
    return _mended(written, path, level)


def too_deep(path: str) -> InvalidInput:
    """The error for a value at this path, which names the record's field."""
    return InvalidInput.of(re.split(r"[.\[]", path)[0], "nested less than 100 levels deep")


def _key(key: object, field: str) -> str:
    match key:
        case str():
            return str(_mended(key, field, 0))
        case None | bool() | int() | float():
            return json.dumps(key)
    raise InvalidInput.of(field, f"keys must be text, not {type(key).__name__}")
