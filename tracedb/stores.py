"""Where archive files are kept: a directory, or an object store through pyarrow.

A file is written under a temporary name and gets its own when it is whole and on disk; a reader
never sees half of one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast
from urllib.parse import unquote, urlsplit

from tracedb.errors import ExtraMissing, InvalidInput, StoreFailed

PART = ".part"


class Store(Protocol):
    """Files by name, `/` between folders."""

    uri: str

    def create(self, name: str) -> BinaryIO:
        """A file to write, under the name with `.part` after it."""

    def finish(self, name: str) -> None:
        """Give a file that was written and closed its own name."""

    def open(self, name: str) -> BinaryIO:
        """A file to read."""

    def size(self, name: str) -> int:
        """The bytes of a file."""

    def remove(self, name: str) -> None:
        """Delete a file, and what was left of writing it; none is no error."""

    def names(self) -> list[str]:
        """Every file, also one that is being written, or was when its run was killed."""


@contextmanager
def failing(what: str) -> Iterator[None]:
    """Make StoreFailed of errors of the system: a full disk, a folder that is gone."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise StoreFailed(f"store: {what}: {reason}") from error


class DirectoryStore:
    """Files below a directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.uri = root.as_uri()

    def create(self, name: str) -> BinaryIO:
        with failing(f"cannot write {name}"):
            self._must_be_there()
            path = self._path(name + PART)
            path.parent.mkdir(parents=True, exist_ok=True)
            return path.open("wb")

    def finish(self, name: str) -> None:
        with failing(f"cannot write {name}"):
            part = self._path(name + PART)
            _sync(part)
            os.replace(part, self._path(name))
            _sync(part.parent)

    def open(self, name: str) -> BinaryIO:
        with failing(f"cannot read {name}"):
            return self._path(name).open("rb")

    def size(self, name: str) -> int:
        with failing(f"cannot read {name}"):
            return self._path(name).stat().st_size

    def remove(self, name: str) -> None:
        with failing(f"cannot remove {name}"):
            self._must_be_there()
            for each in (name, name + PART):
                self._path(each).unlink(missing_ok=True)

    def names(self) -> list[str]:
        with failing("cannot list"):
            self._must_be_there()
            paths = [path for path in self.root.rglob("*") if path.is_file()]
        return sorted(path.relative_to(self.root).as_posix() for path in paths)

    def _must_be_there(self) -> None:
        # made by hand, so that an unmounted disk is not taken for an empty store
        if not self.root.is_dir():
            raise StoreFailed(f"store: {self.root} is no directory: make it, or mount it")

    def _path(self, name: str) -> Path:
        return self.root / name


class ObjectStore:
    """Files of a `pyarrow.fs` file system: S3, GCS, Azure, HDFS.

    An object appears when it is written whole, so that the rename is a copy within the store.
    """

    def __init__(self, files: Any, root: str, uri: str) -> None:
        self._files = files
        self._root = root.rstrip("/")
        self.uri = uri.rstrip("/")

    def create(self, name: str) -> BinaryIO:
        with failing(f"cannot write {name}"):
            path = self._path(name + PART)
            self._files.create_dir(path.rpartition("/")[0], recursive=True)
            return cast(BinaryIO, self._files.open_output_stream(path))

    def finish(self, name: str) -> None:
        with failing(f"cannot write {name}"):
            self._files.move(self._path(name + PART), self._path(name))

    def open(self, name: str) -> BinaryIO:
        with failing(f"cannot read {name}"):
            return cast(BinaryIO, self._files.open_input_file(self._path(name)))

    def size(self, name: str) -> int:
        with failing(f"cannot read {name}"):
            info = self._files.get_file_info(self._path(name))
            if info.size is None:
                raise StoreFailed(f"store: {name}: there is no such file")
            return int(info.size)

    def remove(self, name: str) -> None:
        for each in (name, name + PART):
            with suppress(FileNotFoundError), failing(f"cannot remove {name}"):
                if self._files.get_file_info(self._path(each)).is_file:
                    self._files.delete_file(self._path(each))

    def names(self) -> list[str]:
        from pyarrow.fs import FileSelector

        with failing("cannot list"):
            found = self._files.get_file_info(
                FileSelector(self._root, recursive=True, allow_not_found=True)
            )
        return sorted(each.path[len(self._root) :].lstrip("/") for each in found if each.is_file)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"


def open_store(where: str) -> Store:
    """The store that a path or a URI (`file://`, `s3://bucket/prefix`, ...) names.

    Anything but a directory needs the extra `archive` (ExtraMissing).
    """
    if not where:
        raise InvalidInput.of("store", "must be a directory or a URI")
    scheme, colon, _ = where.partition("://")
    if not colon:
        return DirectoryStore(Path(where).absolute())
    if scheme == "file":
        return DirectoryStore(Path(unquote(where.removeprefix("file://"))).absolute())
    if "@" in urlsplit(where).netloc:
        # it is kept with every archive
        raise InvalidInput.of("store", "must hold no credentials: the environment has them")
    try:
        from pyarrow.fs import FileSystem
    except ImportError:
        raise ExtraMissing(
            "an object store needs pyarrow: pip install 'tracedb[archive]'"
        ) from None
    with failing(f"cannot open {scheme}://..."):
        try:
            files, root = FileSystem.from_uri(where)
        except ValueError as error:
            raise InvalidInput.of("store", str(error)) from error
    return ObjectStore(files, root, where)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
