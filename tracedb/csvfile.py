"""Archive files as gzipped CSV, as COPY writes it: no value is lost, null is not empty."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from types import ModuleType
from typing import BinaryIO, cast

library: ModuleType
DAMAGES: tuple[type[Exception], ...] = (gzip.BadGzipFile, EOFError, zlib.error)
try:
    # from the extra archive: the same format for a quarter of the CPU, and half of it to read
    from isal import igzip
    from isal.isal_zlib import error as isal_error
except ImportError:
    library = gzip
else:
    library = igzip
    DAMAGES = (*DAMAGES, cast(type[Exception], isal_error))  # as an instance in its stubs

SUFFIX = ".csv.gz"

# of 1, 2, 3 and 6 zlib writes 143, 126, 80 and 27 MB/s a core of rows like ours, 4.0 to 5.6 times
# smaller
LEVEL = 1
PORTION = 1 << 20
WORKERS = 2


def encode(rows: Iterable[bytes], file: BinaryIO, columns: Sequence[Mapping[str, str]]) -> str:
    """Write CSV to a file; the SHA-256 of the CSV. Memory is bounded by a few portions."""
    digest = hashlib.sha256()
    waiting: deque[Future[bytes]] = deque()
    # other threads run meanwhile; members one after the other are one gzip file
    with ThreadPoolExecutor(WORKERS) as pool:
        # of no rows, too, it is a gzip file
        for portion in chain([b""], portions(rows)):
            digest.update(portion)
            waiting.append(pool.submit(library.compress, portion, LEVEL, mtime=0))
            if len(waiting) > 2 * WORKERS:
                file.write(waiting.popleft().result())
        while waiting:
            file.write(waiting.popleft().result())
    return digest.hexdigest()


def decode(file: BinaryIO, columns: Sequence[Mapping[str, str]]) -> Iterator[bytes]:
    """The CSV of a file, in portions; OSError, or one of DAMAGES if it is damaged."""
    # the next one is decoded while this one is used
    with library.open(file, "rb") as plain, ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(plain.read, PORTION)
        while portion := ahead.result():
            ahead = pool.submit(plain.read, PORTION)
            yield portion


def portions(rows: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in larger pieces."""
    gathered: list[bytes] = []
    size = 0
    for row in rows:
        gathered.append(row)
        size += len(row)
        if size >= PORTION:
            yield b"".join(gathered)
            gathered, size = [], 0
    if gathered:
        yield b"".join(gathered)


def rows(portions: Iterable[bytes]) -> Iterator[tuple[str | None, ...]]:
    """The rows of a CSV; None is null."""
    for record in records(portions):
        yield tuple(_values(record.decode().removesuffix("\n")))


def records(portions: Iterable[bytes]) -> Iterator[bytes]:
    """The rows of a CSV as they are, each with its line break."""
    record: list[bytes] = []
    quotes = 0
    for line in _lines(portions):
        record.append(line)
        quotes += line.count(b'"')
        # a line break within quotes is of the value
        if quotes % 2 == 0:
            yield b"".join(record)
            record.clear()


def row(values: Sequence[str | None]) -> bytes:
    """A row as CSV."""
    return (",".join(map(_quoted, values)) + "\n").encode()


def _lines(portions: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for portion in portions:
        *whole, rest = (rest + portion).split(b"\n")
        for line in whole:
            yield line + b"\n"
    if rest:
        yield rest


def _values(record: str) -> Iterator[str | None]:
    place = 0
    while True:
        if record.startswith('"', place):
            end = place + 1
            while True:
                end = record.index('"', end)
                if not record.startswith('""', end):
                    break
                end += 2
            yield record[place + 1 : end].replace('""', '"')
            place = end + 1
        else:
            end = record.find(",", place)
            value = record[place:] if end < 0 else record[place:end]
            yield value or None
            place += len(value)
        if place >= len(record):
            return
        place += 1  # the comma


def _quoted(value: str | None) -> str:
    if value is None:
        return ""
    if value == "" or value == "\\." or any(mark in value for mark in ',"\n\r'):
        return '"' + value.replace('"', '""') + '"'
    return value
