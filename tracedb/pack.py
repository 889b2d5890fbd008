"""A record as one line of JSON, fixed at the call: redacted, within byte caps, in bounded time.

The caller waits for this. A record of 1.4 KB in which nothing looks like a secret takes 16
microseconds where `json.dumps` takes 8 (`tests/bench/pack.py`); one that looks otherwise, or is
large, is copied value by value and takes some 100. However large or strange a value is, no more
than `MAX_VALUES` values and a few megabytes are looked at.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from itertools import islice
from json import dumps, loads
from json.encoder import encode_basestring
from typing import Any
from uuid import UUID

from tracedb.errors import InvalidInput
from tracedb.records import MAX_DEPTH, Record, as_json, mended_text, plain, plain_json, too_deep
from tracedb.redaction import REDACTED, Redactor, is_secret_name, may_hold_secret

# of one record, at all levels together
MAX_VALUES = 10_000
MAX_FIELDS = 1000
MIN_BYTES = 1024
CUT = "tracedb_cut"

# A text is redacted before it is cut, or half a secret would stay; the longest is a private key.
_LONGEST_SECRET = 16_384
_LONGEST_KEY = 1024
_LARGE_TEXT = 4096
_FEW_VALUES = 2000
# what JSON needs at most for a number or a time, with its comma
_SCALAR_BYTES = 40
_SCALARS = frozenset({bool, int, float, type(None), UUID, datetime, Decimal})
_NUMBERS = frozenset({int, float})
_MAY_BE_JSON = re.compile(r'\s*[{\["]')


@dataclass(frozen=True, slots=True)
class Limits:
    """The most bytes (UTF-8) of one text, and of one record as JSON; markers come on top.

    InvalidInput if either is below 1 KiB.
    """

    value_bytes: int = 1024 * 1024
    record_bytes: int = 4 * 1024 * 1024

    def __post_init__(self) -> None:
        for field in ("value_bytes", "record_bytes"):
            if getattr(self, field) < MIN_BYTES:
                raise InvalidInput.of(field, f"at least {MIN_BYTES}")


@dataclass(frozen=True, slots=True)
class Packed:
    """A record as one line of JSON in UTF-8, and how many of its values were cut."""

    data: bytes
    cut: int

    @property
    def text(self) -> str:
        return self.data.decode()


def pack(record: Record, limits: Limits, redact_defaults: bool = True) -> Packed:
    """A record as JSON that PostgreSQL can store; InvalidInput ("field: rule") if it cannot be.

    Values become JSON as in `records.as_json`. Known secrets are replaced by "[redacted]"
    (`tracedb/redaction.py`), unless `redact_defaults` is off. A text beyond a limit is cut and says
    so at its end; a list or object keeps its first entries and says in an entry of its own,
    `{"tracedb_cut": ...}`, how many there were. Raises nothing else, whatever the record holds.
    """
    try:
        containers = _simple_containers(record, limits.value_bytes // 8, redact_defaults)
        if containers:
            write = plain_json if containers < MAX_DEPTH else as_json
            data = write(record).encode()
            is_small = len(data) <= limits.value_bytes and len(data) <= limits.record_bytes
            if is_small and b"\\u0000" not in data:
                return Packed(data, 0)
    except Exception:
        # the slow way names it, without secrets in the path
        pass
    try:
        copy = _Copy(limits, redact_defaults)
        return Packed(as_json(copy.record(record)).encode(), copy.cut)
    except InvalidInput:
        raise
    except Exception as error:
        raise InvalidInput.of("record", f"cannot be read ({type(error).__name__})") from None


class _Suspects(dict[Any, bool]):
    """Which keys name a secret, or hold one; remembered, since they are few and come often."""

    def __missing__(self, key: Any) -> bool:
        if not isinstance(key, str) or len(key) > _LONGEST_KEY:
            return True
        suspect = is_secret_name(key) or (len(key) > 12 and may_hold_secret(key))
        if len(self) > 10_000:
            self.clear()
        self[key] = suspect
        return suspect


class _SuspectNames(dict[tuple[Any, ...], bool]):
    """Whether one of the keys of an object is such; the objects of a program have few sets."""

    def __missing__(self, keys: tuple[Any, ...]) -> bool:
        # {"name": "password", "value": ...} is one too
        suspect = any(map(_is_suspect, keys)) or "value" in keys
        if not suspect and sum(map(len, keys)) <= _LONGEST_KEY:
            if len(self) > 1000:
                self.clear()
            self[keys] = suspect
        return suspect


_is_suspect = _Suspects().__getitem__
_are_suspect = _SuspectNames().__getitem__


def _simple_containers(record: Record, most_characters: int, redacting: bool) -> int:
    """How many objects and lists there are in a record, itself included, if it is simple, else 0.

    It is if it is small, of JSON's own types, and without anything like a secret.
    """
    texts: list[str] = []
    values = 0
    containers = 0
    todo: list[Any] = [record]
    if type(record) is not dict:
        return 0
    for value in todo:
        kind = type(value)
        if kind is str:
            texts.append(value)
        elif kind in _SCALARS:
            continue
        elif kind is dict or kind is list or kind is tuple:
            containers += 1
            values += len(value)
            if values > _FEW_VALUES:
                return 0
            if kind is dict:
                if redacting and _are_suspect(tuple(value)):
                    return 0
                todo += value.values()
            # ["password", ...]
            elif redacting and len(value) == 2 and type(value[0]) is str and _is_suspect(value[0]):
                return 0
            else:
                todo += value
        else:
            return 0
    if sum(map(len, texts)) > most_characters:
        return 0
    if redacting and may_hold_secret("\n".join(texts)):
        return 0
    return containers


class _Copy:
    """A copy of a record in types that `as_json` knows, redacted and cut."""

    def __init__(self, limits: Limits, redacting: bool) -> None:
        self.cut = 0
        self._most = limits.value_bytes
        self._bytes_left = limits.record_bytes
        self._values_left = MAX_VALUES
        self._redactor = Redactor() if redacting else None

    def record(self, record: Record) -> dict[Any, Any]:
        """The whole record; small fields first, so that large ones cannot crowd them out."""
        if not isinstance(record, Mapping):
            raise InvalidInput.of("record", "must be an object")
        fields = list(islice(record.items(), MAX_FIELDS + 1))
        if len(fields) > MAX_FIELDS:
            raise InvalidInput.of("record", f"at most {MAX_FIELDS} fields")
        fields.sort(key=lambda field: _is_large(field[1]))
        copy = {}
        for key, item in fields:
            name = self._key(key)
            copy[name] = self._item(key, item, str(name), 0)
        return copy

    def _item(self, key: object, item: object, field: str, level: int) -> object:
        return REDACTED if self._is_secret(key, item) else self._value(item, field, level)

    def _is_secret(self, name: object, item: object) -> bool:
        if self._redactor is None or item is None or item is True or item is False:
            return False
        if isinstance(name, bytes):
            name = name[:_LONGEST_KEY].decode("latin-1")
        if not isinstance(name, str) or not (_is_suspect(name) and is_secret_name(name)):
            return False
        self._redactor.count += 1
        return True

    def _value(self, value: object, field: str, level: int) -> object:
        if level >= MAX_DEPTH:
            raise too_deep(field)
        self._values_left -= 1
        match value:
            case str():
                return self._text(value, field, level)
            case None | bool() | int() | float() | UUID() | datetime():
                self._bytes_left -= _SCALAR_BYTES
                return value
            case Decimal():
                return self._text(str(value), field, level)
            case bytes() | bytearray() | memoryview():
                return self._bytes(value)
            case Mapping():
                return self._mapping(value, field, level)
            case list() | tuple():
                return self._list(value, field, level)
        if _is_vast(value):
            self.cut += 1
            return {CUT: f"...[cut by tracedb: a large {type(value).__name__}]"}
        try:
            written = plain(value)
        except TypeError:
            # as_json says so, with its path
            return value
        return self._value(written, field, level + 1)

    def _mapping(self, value: Mapping[Any, Any], field: str, level: int) -> dict[Any, Any]:
        copy: dict[Any, Any] = {}
        # {"name": "password", "value": ...}, as HAR and OpenTelemetry have it
        label = value.get("name") or value.get("key") if "value" in value else None
        for count, (key, item) in enumerate(value.items()):
            if self._is_full():
                copy[CUT] = self._end(count, len(value))
                break
            name = label if key == "value" and isinstance(label, str) else key
            copy[self._key(key)] = self._item(name, item, field, level + 1)
        return copy

    def _list(self, value: Sequence[Any], field: str, level: int) -> list[Any]:
        if self._values_left > len(value) and _NUMBERS.issuperset(map(type, value)):
            self._values_left -= len(value)
            self._bytes_left -= len(value) * _SCALAR_BYTES
            return list(value)
        copy: list[Any] = []
        for count, item in enumerate(value):
            if self._is_full():
                copy.append({CUT: self._end(count, len(value))})
                break
            # [["Authorization", "..."]], as headers often come
            if type(item) in (list, tuple) and len(item) == 2 and self._is_secret(*item):
                copy.append([self._value(item[0], field, level + 2), REDACTED])
            else:
                copy.append(self._value(item, field, level + 1))
        return copy

    def _is_full(self) -> bool:
        return self._values_left <= 0 or self._bytes_left <= 0

    def _end(self, count: int, total: int) -> str:
        self.cut += 1
        return f"...[cut by tracedb: {count} of {total} entries]"

    def _key(self, key: object) -> object:
        if not isinstance(key, str):
            self._bytes_left -= _SCALAR_BYTES
            return key
        text = str.__getitem__(key, slice(_LONGEST_KEY))
        if self._redactor is not None and _is_suspect(text):
            text = self._redactor.text(text)
        if len(key) > _LONGEST_KEY:
            self.cut += 1
            text += f"...[cut by tracedb: {_LONGEST_KEY} of {len(key)} characters]"
        self._bytes_left -= _json_bytes(text) + 2
        return text

    def _bytes(self, value: bytes | bytearray | memoryview) -> str:
        head = bytes(value[: self._most + _LONGEST_SECRET])
        if self._redactor is not None:
            text = head.decode(errors="replace")
            if self._redactor.text(text) != text:
                return REDACTED
        return self._fitted(head.hex(), None if len(head) == len(value) else f"{2 * len(value)}")

    def _text(self, value: str, field: str, level: int) -> str:
        head = str.__getitem__(value, slice(self._most + _LONGEST_SECRET))
        text = (
            head if self._redactor is None else self._redacted(self._redactor, head, field, level)
        )
        if len(head) == str.__len__(value):
            return self._fitted(text, None)
        # the bytes of two billion characters are not counted
        return self._fitted(text, f"{'' if value.isascii() else 'over '}{str.__len__(value)}")

    def _redacted(self, redactor: Redactor, text: str, field: str, level: int) -> str:
        """A text without its secrets; one that is JSON is read as JSON."""
        if not may_hold_secret(text):
            return text
        if _MAY_BE_JSON.match(text) and text.count(",") < self._values_left:
            found, cut, bytes_left = redactor.count, self.cut, self._bytes_left
            try:
                copy = self._value(loads(text, object_pairs_hook=_once), field, level + 1)
            except (ValueError, RecursionError, InvalidInput):
                pass
            else:
                # what is inside is paid for as the text that it is
                self._bytes_left = bytes_left
                if redactor.count > found:
                    return dumps(copy, ensure_ascii=False)
                self.cut = cut
                return text
        return redactor.text(text)

    def _fitted(self, text: str, total: str | None) -> str:
        """The text, or what fits of it, with a marker; `total` are its bytes, if it is not all."""
        # what as_json will make of it, which takes more bytes
        text = text.replace("\0", "\ufffd")
        if total is None and _bytes(text) <= self._most:
            size = _json_bytes(text)
            if size <= self._bytes_left:
                self._bytes_left -= size
                return text
        kept = mended_text(text).encode()[: self._most].decode(errors="ignore")
        while kept and (size := _json_bytes(kept)) > self._bytes_left:
            kept = kept[: len(kept) * max(self._bytes_left, 0) // size]
        self.cut += 1
        kept += f"...[cut by tracedb: {_bytes(kept)} of {total or _bytes(text)} bytes]"
        self._bytes_left -= _json_bytes(kept)
        return kept


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; of two fields of one name the first would go unread."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError
    return found


def _is_vast(value: object) -> bool:
    """Whether a set or an array of numbers is too large to be written as a list."""
    size = getattr(value, "nbytes", None)
    if isinstance(size, int):
        return size > 8 * MAX_VALUES
    return isinstance(value, Sized) and len(value) > MAX_VALUES


def _is_large(value: object) -> bool:
    if isinstance(value, str):
        return str.__len__(value) > _LARGE_TEXT
    return type(value) not in _SCALARS


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _json_bytes(text: str) -> int:
    return _bytes(encode_basestring(text))
