"""The spool: what survives on disk, and what damage to it costs."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracedb import spool as spools
from tracedb.spool import Folder, Segment, Spool, read

TENANT = UUID("0000000a-0000-4000-8000-000000000000")
TEXTS = [b'{"n":%d}' % n for n in range(1, 6)]


def spool(root: Path, **changes: Any) -> Spool:
    settings = {"service": "shop", "max_bytes": 10**9}
    return Spool(root, uuid4(), **{**settings, **changes})


def filled(root: Path) -> tuple[Spool, Segment]:
    """A spool with a segment of five records."""
    ours = spool(root)
    segment = ours.new_segment()
    assert segment is not None
    for number, text in enumerate(TEXTS, start=1):
        assert ours.append(segment, number, TENANT.hex.encode(), text)
    return ours, segment


def left_behind(root: Path) -> Path:
    """The segment of a process that was killed: its lock is free, and its file is there."""
    ours, segment = filled(root)
    ours.after_fork()
    segment.close()
    return segment.path


def adopted(root: Path) -> list[Folder]:
    return spool(root).adopt()


def contents(path: Path) -> list[bytes]:
    found = read(Segment(path))
    assert found is not None
    return [text for _, _, text in found.records]


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    _, segment = filled(tmp_path)
    found = read(Segment(segment.path))

    assert found is not None
    assert found.records == [(n, TENANT, text) for n, text in enumerate(TEXTS, start=1)]
    assert (found.service, found.damaged) == ("shop", [])


def test_records_are_for_their_owner_s_eyes(tmp_path: Path) -> None:
    _, segment = filled(tmp_path / "spool")

    assert stat.S_IMODE(segment.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(segment.path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "spool").stat().st_mode) == 0o700


def test_a_folder_is_adopted_when_its_process_is_gone_and_by_one_alone(tmp_path: Path) -> None:
    ours, _ = filled(tmp_path)
    other = spool(tmp_path)

    assert other.adopt() == []
    ours.after_fork()  # closes the lock, as the end of the process does
    (folder,) = other.adopt()
    assert folder.writer_id == ours.writer_id
    assert [contents(segment.path) for segment in folder.segments] == [TEXTS]
    assert other.adopt() == []
    assert adopted(tmp_path) == []


def test_an_empty_folder_goes(tmp_path: Path) -> None:
    ours, segment = filled(tmp_path)
    segment.remove()
    ours.close()

    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_just_being_made_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / str(uuid4())).mkdir()

    assert adopted(tmp_path) == []
    assert len(list(tmp_path.iterdir())) == 1


def test_an_old_empty_folder_is_cleared_away(tmp_path: Path) -> None:
    folder = tmp_path / str(uuid4())
    folder.mkdir()
    (folder / "lock").touch()
    os.utime(folder, (0, 0))

    assert adopted(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_files_of_others_stay(tmp_path: Path) -> None:
    path = left_behind(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "quarantine").mkdir()
    (path.parent / "core").write_text("mine")
    other = spool(tmp_path)

    (folder,) = other.adopt()
    folder.segments[0].remove()
    other.release(folder)

    assert sorted(str(found.relative_to(tmp_path)) for found in tmp_path.rglob("*")) == [
        str(path.parent.name),
        f"{path.parent.name}/core",
        f"{path.parent.name}/lock",
        "notes.txt",
        "quarantine",
    ]


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_damage_costs_the_damaged_lines_alone(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("spool")
    path = left_behind(root)
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    begin = data.draw(st.integers(0, len(whole) - 1))
    end = data.draw(st.integers(begin, min(begin + 40, len(whole))))
    junk = data.draw(st.binary(max_size=40))
    path.write_bytes(whole[:begin] + junk + whole[end:])

    starts = [sum(map(len, lines[:n])) for n in range(len(lines) + 1)]
    untouched = [
        TEXTS[n - 1]
        for n in range(1, len(lines))
        # a line is touched by what happens to it, or to the newline before it
        if not (starts[n] - 1 < end and begin < starts[n + 1]) and begin != starts[n]
    ]
    found = contents(path)
    assert [text for text in found if text in untouched] == untouched
    assert set(found) <= set(TEXTS)


@given(junk=st.binary(max_size=2000))
def test_any_file_can_be_read(tmp_path_factory: pytest.TempPathFactory, junk: bytes) -> None:
    path = tmp_path_factory.mktemp("spool") / "000001.seg"
    path.write_bytes(junk)
    found = read(Segment(path))

    assert found is not None
    assert found.records == []
    assert found.damaged == [line for line in junk.split(b"\n") if line]


def test_a_file_too_large_to_be_ours_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "000001.seg"
    with path.open("wb") as file:
        file.truncate(spools.MAX_SEGMENT_BYTES + 1)

    assert read(Segment(path)) is None


def test_a_later_format_is_left_to_a_later_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spools, "FORMAT", 2)
    path = left_behind(tmp_path)
    monkeypatch.undo()

    assert read(Segment(path)) is None


def test_damaged_lines_are_kept_apart(tmp_path: Path) -> None:
    ours, segment = filled(tmp_path)
    ours.quarantine(segment, [b"junk", b"more"])

    (kept,) = (tmp_path / "quarantine").iterdir()
    assert kept.read_bytes() == b"junk\nmore\n"
    assert stat.S_IMODE(kept.parent.stat().st_mode) == 0o700


def test_a_folder_that_cannot_be_made_is_trouble_and_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    ours = spool(tmp_path / "file" / "spool")

    assert ours.new_segment() is None
    assert ours.trouble == os.strerror(errno.ENOTDIR)
    assert ours.adopt() == []


def test_a_disk_that_is_full_ends_the_segment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, segment = filled(tmp_path)

    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    assert not ours.append(segment, 6, TENANT.hex.encode(), b"{}")
    monkeypatch.undo()

    assert ours.trouble == os.strerror(errno.ENOSPC)
    assert contents(segment.path) == TEXTS


def test_half_a_record_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, segment = filled(tmp_path)
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:10]))

    assert not ours.append(segment, 6, TENANT.hex.encode(), b"{}")

    found = read(segment)
    assert found is not None
    assert (len(found.records), found.damaged) == (5, [])


def test_the_size_counts_what_is_on_disk(tmp_path: Path) -> None:
    ours, segment = filled(tmp_path)
    assert ours.size == segment.path.stat().st_size

    ours.clear(segment)
    assert ours.size == segment.path.stat().st_size == segment.header_size
    assert ours.append(segment, 6, TENANT.hex.encode(), b"{}")
    assert contents(segment.path) == [b"{}"]
