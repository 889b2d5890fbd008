"""Accepted records on disk, so that they outlive the process: append-only segments in one folder.

    <spool>/<writer_id>/lock         held (flock) by the process that delivers this folder
    <spool>/<writer_id>/000001.seg   a line a record: crc32 number tenant JSON
    <spool>/quarantine/              lines that were damaged

A line carries its own checksum, so that a torn or flipped one costs itself alone. There is no file
that says what was delivered: whatever a dead process left is delivered again, and the ledger of the
database makes it once. A record is on disk once the kernel has it: that survives the death of the
process, not a power failure.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from binascii import crc32
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, time
from uuid import UUID

FORMAT = 1
SEGMENT_BYTES = 4 * 1024 * 1024
# No segment of ours comes near; what is larger is not read into memory.
MAX_SEGMENT_BYTES = 16 * SEGMENT_BYTES
RETRY_SECONDS = 1.0
# An empty folder that is younger may be one that its writer is just making.
ABANDONED_SECONDS = 60.0

QUARANTINE = "quarantine"

_NAME = re.compile(r"\d{6,}\.seg")
_NOBODY = b"0" * 32


@dataclass(slots=True, eq=False)
class Segment:
    """A file of records; `fd` while it is being written."""

    path: Path
    size: int = 0
    fd: int | None = None
    header_size: int = 0

    @property
    def is_full(self) -> bool:
        return self.size >= SEGMENT_BYTES

    def clear(self) -> None:
        """Forget its records, and go on with it."""
        if self.fd is not None:
            try:
                os.ftruncate(self.fd, self.header_size)
            except OSError:
                return  # they will be delivered twice, and stored once
            self.size = self.header_size

    def close(self) -> None:
        if self.fd is not None:
            fd, self.fd = self.fd, None
            os.close(fd)

    def remove(self) -> None:
        self.close()
        self.path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Contents:
    """What a segment holds: (number, tenant, JSON text) of each record, and the damaged lines."""

    service: str | None
    records: list[tuple[int, UUID, bytes]]
    damaged: list[bytes]


@dataclass(slots=True, eq=False)
class Folder:
    """The spool folder of one writer, and the lock that makes it ours."""

    path: Path
    writer_id: UUID
    lock: int
    segments: list[Segment] = field(default_factory=list)

    def release(self) -> None:
        """Give the folder up, and remove it if nothing is left in it."""
        try:
            if os.listdir(self.path) == ["lock"]:
                (self.path / "lock").unlink()
                self.path.rmdir()
        except OSError:
            pass  # somebody put a file of theirs there, or took ours away
        os.close(self.lock)


class Spool:
    """The spool of one writer. Its methods raise nothing: `trouble` says what the disk said."""

    def __init__(self, root: Path, writer_id: UUID, service: str | None, max_bytes: int) -> None:
        self.root = root
        self.writer_id = writer_id
        self.service = service
        self.max_bytes = max_bytes
        # of the segments of this writer
        self.size = 0
        self.trouble: str | None = None
        self._own: Folder | None = None
        self._adopted: dict[UUID, Folder] = {}
        self._next = 1
        self._retry_at = 0.0

    def new_segment(self) -> Segment | None:
        """A new file to append to; None if there can be none now."""
        if self.trouble is not None and monotonic() < self._retry_at:
            return None
        try:
            if self._own is None:
                self._own = _claim(self.root / str(self.writer_id), self.writer_id, make=True)
                if self._own is None:
                    raise OSError("the folder of this writer is taken")
            path = self._own.path / f"{self._next:06}.seg"
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
            segment = Segment(path, fd=os.open(path, flags, 0o600))
        except OSError as error:
            self._fail(error)
            return None
        self._next += 1
        header = {"writer_id": str(self.writer_id), "service": self.service, "format": FORMAT}
        if not self._write(segment, 0, _NOBODY, json.dumps(header).encode()):
            segment.remove()
            return None
        segment.header_size = segment.size
        return segment

    def append(self, segment: Segment, number: int, tenant: bytes, text: bytes) -> bool:
        """Write a record (`tenant` in 32 hex digits); if False, the segment is of no more use."""
        if self._write(segment, number, tenant, text):
            self.trouble = None
            return True
        segment.close()
        return False

    def has_room(self, size: int) -> bool:
        return self.size + size <= self.max_bytes

    def clear(self, segment: Segment) -> None:
        """Forget the records of a segment that goes on being written."""
        before = segment.size
        segment.clear()
        self.size -= before - segment.size

    def discard(self, segment: Segment) -> None:
        """The segment is about to be removed."""
        self.size -= segment.size
        segment.size = 0

    def _write(self, segment: Segment, number: int, tenant: bytes, text: bytes) -> bool:
        assert segment.fd is not None
        body = b"%d %b %b" % (number, tenant, text)
        line = b"%08x %b\n" % (crc32(body), body)
        try:
            written = os.write(segment.fd, line)
            if written < len(line):
                os.ftruncate(segment.fd, segment.size)
                raise OSError("the disk took a part of a record only")
        except OSError as error:
            self._fail(error)
            return False
        segment.size += written
        self.size += written
        return True

    def _fail(self, error: OSError) -> None:
        self.trouble = error.strerror or str(error)
        self._retry_at = monotonic() + RETRY_SECONDS

    def adopt(self) -> list[Folder]:
        """Take over the folders of writers that are gone, each for one process alone."""
        try:
            names = sorted(os.listdir(self.root))
        except OSError:
            return []
        found = []
        for name in names:
            writer_id = _writer_id(name)
            if writer_id is None or writer_id == self.writer_id or writer_id in self._adopted:
                continue
            try:
                folder = _claim(self.root / name, writer_id)
            except OSError:
                continue  # not ours to open
            if folder is not None:
                self._adopted[writer_id] = folder
                found.append(folder)
        return found

    def release(self, folder: Folder) -> None:
        """What was in an adopted folder is delivered; one with files of others stays ours."""
        try:
            if _segments(folder.path):
                return
        except OSError:
            pass  # the folder itself is gone
        self._adopted.pop(folder.writer_id, None)
        folder.release()

    def quarantine(self, segment: Segment, damaged: list[bytes]) -> None:
        """Keep damaged lines apart, for whoever wants to look."""
        folder = self.root / QUARANTINE
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            name = f"{segment.path.parent.name}-{segment.path.stem}.bad"
            (folder / name).write_bytes(b"\n".join(damaged) + b"\n")
        except OSError as error:
            self._fail(error)

    def close(self) -> None:
        """Let go of all folders; what was not delivered stays for the next process."""
        for folder in self._folders():
            folder.release()

    def after_fork(self) -> None:
        """In the child: the locks are the parent's, and end when no process has them open."""
        for folder in self._folders():
            os.close(folder.lock)

    def _folders(self) -> list[Folder]:
        return [*self._adopted.values(), *([self._own] if self._own is not None else [])]


def read(segment: Segment) -> Contents | None:
    """The records of a segment; None if it is no file of ours. Raises OSError."""
    if segment.path.stat().st_size > MAX_SEGMENT_BYTES:
        return None
    service: str | None = None
    records = []
    damaged = []
    for line in segment.path.read_bytes().split(b"\n"):
        if not line:
            continue
        try:
            checksum, body = line.split(b" ", 1)
            if checksum != b"%08x" % crc32(body):
                raise ValueError
            number, tenant, text = body.split(b" ", 2)
            if tenant == _NOBODY:
                header = json.loads(text)
                if header["format"] != FORMAT:
                    return None
                service = header["service"]
            elif 0 < int(number) < 2**63:
                records.append((int(number), UUID(tenant.decode()), text))
            else:
                raise ValueError
        except (ValueError, KeyError, TypeError):
            damaged.append(line)
    return Contents(service, records, damaged)


def claim_all(root: Path) -> Iterator[tuple[Path, Folder | None]]:
    """The folders of all writers, ours until they are released; None for one that is in use.

    Raises OSError.
    """
    for name in sorted(os.listdir(root)):
        writer_id = _writer_id(name)
        if writer_id is not None and _segments(root / name):
            yield root / name, _claim(root / name, writer_id)


def rewrite(segment: Segment, keep: Callable[[bytes], bool]) -> None:
    """Write a segment anew with some of its lines; it is the old or the new one at any moment."""
    lines = [line for line in segment.path.read_bytes().split(b"\n") if line]
    anew = segment.path.with_suffix(".new")
    with anew.open("wb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.writelines(line + b"\n" for line in lines if keep(line))
        file.flush()
        os.fsync(file.fileno())
    anew.replace(segment.path)
    folder = os.open(segment.path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _writer_id(name: str) -> UUID | None:
    try:
        writer_id = UUID(name)
    except ValueError:
        return None
    return writer_id if str(writer_id) == name else None


def _claim(path: Path, writer_id: UUID, *, make: bool = False) -> Folder | None:
    """The folder, if nobody else has it (and, unless it is made, if there is anything in it)."""
    if make:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
    elif not (_segments(path) or time() - path.stat().st_mtime > ABANDONED_SECONDS):
        return None
    lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever had it may just have removed it.
        if not os.path.samestat(os.fstat(lock), os.stat(path / "lock")):
            raise FileNotFoundError
    except (BlockingIOError, FileNotFoundError):
        os.close(lock)
        return None
    folder = Folder(path, writer_id, lock, _segments(path))
    if not folder.segments and not make:
        folder.release()
        return None
    return folder


def _segments(folder: Path) -> list[Segment]:
    return [Segment(folder / name) for name in sorted(os.listdir(folder)) if _NAME.fullmatch(name)]
