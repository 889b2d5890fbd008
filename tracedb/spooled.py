"""Records of a user in the spools of writers that are gone: erased from there, or exported.

A folder that a live writer holds is left alone; what it delivers, the database refuses.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from psycopg.rows import scalar_row

from tracedb.client import Tenant
from tracedb.errors import TracedbError
from tracedb.query import Query, one, statement
from tracedb.spool import QUARANTINE, Folder, Segment, claim_all, read, rewrite

_BATCH = 400
_KEYS = ("trace_id", "external_id", "parent_trace_id", "root_trace_id")


@dataclass(slots=True)
class SpoolErased:
    """What was erased from a spool, and the folders that live writers hold."""

    segments: int = 0
    records: int = 0
    damaged_lines: int = 0
    held: list[Path] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        return {
            "segments": self.segments,
            "records": self.records,
            "damaged_lines": self.damaged_lines,
        }


def kept_numbers(writer_id: UUID, numbers: list[int], texts: list[str]) -> Query[list[int]]:
    """The numbers of the records that are to be kept (`tracedb.erase_spooled`)."""
    args = {"writer_id": writer_id, "numbers": numbers, "records": texts}
    return Query(statement("erase_spooled", "erasure.sql"), args, scalar_row, one)


def erase(root: Path, tenant: Tenant, user_id: str | None) -> SpoolErased:
    """Take the records out that the database would refuse, and damaged lines that name the user.

    Call it once the erasure has begun. A trace may be known as the user's only from a record that
    comes later, in another folder: so it is gone through until nothing more is found.
    """
    erased = SpoolErased()
    names = [tenant.tenant_id.hex.encode()] if user_id is None else _spellings(user_id)
    with _unreadable(root):
        found = True
        while found:
            found = False
            erased.held = []
            for path, folder in claim_all(root):
                if folder is None:
                    erased.held.append(path)
                    continue
                try:
                    for segment in folder.segments:
                        found |= _erase_segment(erased, folder, segment, tenant, names)
                finally:
                    folder.release()
        for path in sorted((root / QUARANTINE).glob("*.bad")):
            _erase_lines(erased, Segment(path), lambda line: any(name in line for name in names))
    return erased


def of_user(
    root: Path, tenant_id: UUID, user_id: str, keys: set[str]
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The records of a user, and of the traces that `keys` name, with their folders.

    Also those of a folder in use, as far as they are written.
    """
    with _unreadable(root):
        records = [
            (path.parent, json.loads(text))
            for path in sorted(root.glob("*-*/*.seg"))
            if (contents := read(Segment(path))) is not None
            for _, owner, text in contents.records
            if owner == tenant_id
        ]
    keys = set(keys)
    theirs: set[int] = set()
    before = -1
    while len(theirs) > before:
        before = len(theirs)
        for place, (_, record) in enumerate(records):
            named = {_key(value) for key in _KEYS if (value := record.get(key)) is not None}
            user = record.get("user_id")
            # a number is stored as text
            if (user is not None and str(user) == user_id) or named & keys:
                theirs.add(place)
                if record.get("type") == "trace":
                    keys |= {_key(value) for key in _KEYS[:2] if (value := record.get(key))}
    for place in sorted(theirs):
        yield records[place]


def _erase_segment(
    erased: SpoolErased, folder: Folder, segment: Segment, tenant: Tenant, names: list[bytes]
) -> bool:
    contents = read(segment)
    if contents is None:
        return False
    owner = tenant.tenant_id
    ours = [(number, text) for number, whose, text in contents.records if whose == owner]
    gone: set[bytes] = set()
    for first in range(0, len(ours), _BATCH):
        batch = ours[first : first + _BATCH]
        numbers = [number for number, _ in batch]
        texts = [text.decode(errors="replace").replace("\0", "") for _, text in batch]
        kept = tenant.run(kept_numbers(folder.writer_id, numbers, texts))
        gone |= {
            b"%d %b" % (number, owner.hex.encode()) for number in set(numbers).difference(kept)
        }
    erased.records += len(gone)
    damaged = set(contents.damaged)

    def is_theirs(line: bytes) -> bool:
        if line in damaged:
            return any(name in line for name in names)
        return b" ".join(line.split(b" ", 3)[1:3]) in gone

    _erase_lines(erased, segment, is_theirs, without=len(gone))
    if gone and len(gone) == len(contents.records) and not damaged:
        segment.remove()
    return bool(gone)


def _erase_lines(
    erased: SpoolErased, segment: Segment, is_theirs: Callable[[bytes], bool], without: int = 0
) -> None:
    lines = segment.path.read_bytes().split(b"\n")
    if gone := sum(map(is_theirs, lines)):
        rewrite(segment, lambda line: not is_theirs(line))
        erased.segments += 1
        erased.damaged_lines += gone - without


def _spellings(name: str) -> list[bytes]:
    """How a line of JSON may have it: with and without escapes."""
    return sorted({json.dumps(name).encode(), json.dumps(name, ensure_ascii=False).encode()})


def _key(id: object) -> str:
    """As `tracedb.external_key`."""
    text = str(id)
    try:
        return UUID(text).hex if len(text) in (32, 36) else text
    except ValueError:
        return text


@contextmanager
def _unreadable(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TracedbError(f"the spool {root}: {error.strerror or error}") from error
