"""The slabs of a backlog: which take new records, which wait to be read back, which are over."""

from __future__ import annotations

from collections.abc import Iterable
from time import monotonic

from tracedb.lanes import Lane, Slab
from tracedb.spool import Folder, Segment, Spool


class Slabs:
    """Not thread-safe by itself: the backlog's lock is held in every call."""

    def __init__(self, spool: Spool | None) -> None:
        self.spool = spool
        self._all: dict[Slab, None] = {}
        # Those that take new records: in memory only, in memory and spool, in the spool only.
        self._memory: Slab | None = None
        self._mirrored: Slab | None = None
        self._disk: Slab | None = None

    @property
    def pending(self) -> int:
        """Records of this process that are not settled."""
        return sum([slab.unsettled for slab in self._all if slab.folder is None])

    @property
    def are_over(self) -> bool:
        return all(slab.is_over for slab in self._all)

    def every(self) -> list[Slab]:
        return list(self._all)

    def in_memory(self) -> Slab:
        """The slab of records that are nowhere else."""
        if self._memory is None:
            self._memory = self._new(None)
        return self._memory

    def on_disk(self, lane: Lane, number: int, text: bytes, *, mirrored: bool) -> Slab | None:
        """The slab whose file now has the record; None if it could not be written."""
        spool = self.spool
        if spool is None or not spool.has_room(len(text)):
            return None
        slab = self._mirrored if mirrored else self._disk
        if slab is not None and slab.segment is not None and slab.segment.is_full:
            self.leave(slab)
            slab = None
        if slab is None:
            segment = spool.new_segment()
            slab = self._new(segment) if segment is not None else None
        segment = slab.segment if slab is not None else None
        if slab is not None and not (segment and spool.append(segment, number, lane.tenant, text)):
            # what may be torn there is the last of that file
            self.leave(slab)
            slab = None
        if mirrored:
            self._mirrored = slab
        else:
            self._disk = slab
        return slab

    def seal(self) -> None:
        """Give new records slabs of their own."""
        for slab in (self._memory, self._mirrored, self._disk):
            if slab is not None:
                self.leave(slab)
        self._memory = self._mirrored = self._disk = None

    def leave(self, slab: Slab) -> None:
        """Nothing more is added to this slab."""
        if slab.segment is not None:
            slab.segment.close()
        if slab.is_over:
            self.forget(slab)
            if slab.segment is not None:
                slab.segment.remove()

    def forget(self, slab: Slab) -> None:
        self._all.pop(slab, None)
        if slab.segment is not None and self.spool is not None:
            self.spool.discard(slab.segment)

    def adopt(self, folder: Folder) -> None:
        """Add the files of a writer that is gone."""
        for segment in folder.segments:
            self._all[Slab(segment, unread=True, folder=folder)] = None

    def spilled(self) -> Slab | None:
        """One with records that can only be read back, of a tenant that is not held."""
        now = monotonic()
        for slab in self._all:
            wanted = slab.unread or any(not lane.held for lane in slab.spilled)
            if wanted and slab.later <= now:
                if slab is self._disk:
                    self._disk = None
                    self.leave(slab)
                return slab
        return None

    def take_over(self, slabs: Iterable[Slab]) -> list[Segment]:
        """Forget those of the slabs that are over; their files, to be removed."""
        files = []
        for slab in slabs:
            if not slab.is_over:
                continue
            if slab is self._mirrored and slab.segment is not None and self.spool is not None:
                # it goes on being written, but what it holds is in the database
                self.spool.clear(slab.segment)
            elif slab is not self._memory and slab is not self._disk:
                self.forget(slab)
                if slab.segment is not None:
                    files.append(slab.segment)
        return files

    def _new(self, segment: Segment | None) -> Slab:
        slab = Slab(segment)
        self._all[slab] = None
        return slab
