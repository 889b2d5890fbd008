"""Reads a JSON document field by field, and names by its path whatever is missing or wrong."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from tracedb.errors import InvalidInput

# as the constraints of schema/: money below 1e15, labels of 1024 bytes, times from 1970 to 2200
_MOST_MONEY = Decimal(10) ** 15
_LONGEST_LABEL = 1024
_EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
_LATEST = datetime(2200, 1, 1, tzinfo=UTC)
# 300 years; keeps a hostile exponent from being written out
_MOST_SECONDS = 10**10
_MOST_TOKENS = 2**53
# more decimal places than this are no measurement, and sums would no longer be exact
_MOST_PLACES = 100


@dataclass(frozen=True, slots=True)
class Field:
    """A value of a document and its path, such as `simulations[2].messages[5].timestamp`."""

    path: str
    value: Any

    def __getitem__(self, key: str) -> Field:
        """A field of this object; its value is None if it is not there."""
        if not isinstance(self.required().value, dict):
            raise self.wrong(f"must be an object, not {_kind(self.value)}")
        return Field(f"{self.path}.{key}" if self.path else key, self.value.get(key))

    def __iter__(self) -> Iterator[Field]:
        """The elements of this array."""
        if not isinstance(self.required().value, list):
            raise self.wrong(f"must be an array, not {_kind(self.value)}")
        return (Field(f"{self.path}[{n}]", item) for n, item in enumerate(self.value))

    def __bool__(self) -> bool:
        """Whether there is a value; null counts as none."""
        return self.value is not None

    def wrong(self, rule: str) -> InvalidInput:
        """The error that names this field."""
        return InvalidInput.of(self.path or "document", rule)

    def required(self) -> Field:
        """This field, if it has a value."""
        if self.value is None:
            raise self.wrong("required")
        return self

    def text(self) -> str:
        value = self.required().value
        if not isinstance(value, str):
            raise self.wrong(f"must be text, not {_kind(value)}")
        return value

    def label(self) -> str:
        """A short text that is not empty; a number is taken as its digits."""
        value = self.required().value
        text = str(value) if type(value) is int else self.text()
        if not 1 <= len(text.encode(errors="replace")) <= _LONGEST_LABEL:
            raise self.wrong(f"must have from 1 to {_LONGEST_LABEL} bytes")
        return text

    def number(self) -> Decimal:
        """A number, with the digits of the document."""
        value = self.required().value
        if isinstance(value, bool) or not isinstance(value, int | Decimal):
            raise self.wrong(f"must be a number, not {_kind(value)}")
        number = Decimal(value)
        # the exponent first: comparing or adding could write its zeros out
        places = number.as_tuple().exponent
        if not isinstance(places, int) or not -_MOST_PLACES <= places <= _MOST_PLACES:
            raise self.wrong(f"must have no more than {_MOST_PLACES} places")
        return number

    def money(self) -> Decimal:
        amount = self.number()
        if not 0 <= amount < _MOST_MONEY:
            raise self.wrong("must be at least 0 and less than 1e15")
        return amount

    def tokens(self) -> int:
        value = self.required().value
        if type(value) is not int or not 0 <= value < _MOST_TOKENS:
            raise self.wrong("must be a whole number, at least 0")
        return value

    def milliseconds(self) -> int:
        """Seconds, rounded to milliseconds."""
        seconds = self.number()
        if not 0 <= seconds < _MOST_SECONDS:
            raise self.wrong("must be a number of seconds, at least 0")
        return round(seconds * 1000)

    def time(self) -> datetime:
        """An ISO 8601 time; one without an offset is taken as UTC."""
        try:
            at = datetime.fromisoformat(self.text())
            at = (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC)
        except (ValueError, OverflowError):
            raise self.wrong("must be an ISO 8601 time") from None
        if not _EARLIEST <= at < _LATEST:
            raise self.wrong("must lie between 1970 and 2200")
        return at

    def json(self) -> Any:
        """The value as it is, for a payload; its fractions as floats."""
        return _floats(self.value)


def read_document(path: Path) -> Field:
    """The document of a .json or .json.gz file; InvalidInput says why it is none."""
    data = path.read_bytes()
    try:
        if data.startswith(b"\x1f\x8b"):
            data = gzip.decompress(data)
        value = json.loads(data, parse_float=Decimal, parse_constant=_no_constant)
        _floats(value)  # as deep as anything later goes
    except (ValueError, ArithmeticError, RecursionError, EOFError, OSError, zlib.error) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise InvalidInput.of("document", f"not JSON ({reason})") from None
    return Field("", value)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _floats(value: Any) -> Any:
    match value:
        case Decimal():
            return float(value)
        case dict():
            return {key: _floats(item) for key, item in value.items()}
        case list():
            return [_floats(item) for item in value]
    return value


def _kind(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a truth value"
        case int() | Decimal():
            return "a number"
        case str():
            return "text"
        case list():
            return "an array"
    return "an object"
