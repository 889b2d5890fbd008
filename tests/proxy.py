"""A TCP proxy before a PostgreSQL server that refuses, swallows, or loses replies to commits."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress

from psycopg.conninfo import conninfo_to_dict, make_conninfo

_CHUNK = 65536


class Proxy:
    """Passes connections on until it is told otherwise. Threads: one, and one a connection."""

    def __init__(self, dsn: str) -> None:
        target = conninfo_to_dict(dsn)
        self._host, self._server_port = str(target["host"]), int(target.get("port") or 5432)
        self._listener = _listen(0)
        self._port = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._down = False
        self._swallow = False
        self._commit_replies_to_lose = 0
        # what becomes of a client's bytes: passed on, or None to break the connection
        self.rule: Callable[[bytes], bytes | None] = lambda data: data
        self.connections = 0
        self.lost_replies = 0
        self.dsn = make_conninfo(
            dsn, host="127.0.0.1", port=self._port, sslmode="disable", gssencmode="disable"
        )
        self._accepting()

    def refuse(self) -> None:
        """Break all connections and refuse new ones, as a server that is down."""
        with self._lock:
            self._down = True
        # a listener that another thread waits on stays alive when it is only closed
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.break_all()

    def swallow(self) -> None:
        """Take bytes and never answer, as a network that has gone; also on open connections."""
        self._swallow = True

    def lose_commit_replies(self, count: int) -> None:
        """Pass the next commits on, break their connections instead of passing the replies."""
        with self._lock:
            self._commit_replies_to_lose = count

    def heal(self) -> None:
        """Pass new connections on again. What was swallowed stays dead."""
        if self._swallow:
            self.break_all()
        self._swallow = False
        with self._lock:
            self._down = False
        if self._listener.fileno() == -1:
            self._listener = _listen(self._port)
            self._accepting()

    def break_all(self) -> None:
        """Break all connections."""
        with self._lock:
            for end in self._open:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.refuse()

    def _accepting(self) -> None:
        threading.Thread(target=self._accept, args=[self._listener], daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=[client], daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with closing(client), suppress(OSError), closing(self._connect()) as server:
            with self._lock:
                if self._down:
                    return
                self._open |= {client, server}
            try:
                self._pass(client, server)
            finally:
                with self._lock:
                    self._open -= {client, server}

    def _connect(self) -> socket.socket:
        if not self._host.startswith("/"):
            return socket.create_connection((self._host, self._server_port))
        server = socket.socket(socket.AF_UNIX)
        server.connect(f"{self._host}/.s.PGSQL.{self._server_port}")
        return server

    def _pass(self, client: socket.socket, server: socket.socket) -> None:
        """Until an end is closed; a reply to a commit may be the end of it."""
        dead = committing = False
        while True:
            for end in select.select([client, server], [], [])[0]:
                data = end.recv(_CHUNK)
                dead = dead or self._swallow
                if not data:
                    return
                if dead:
                    continue
                if end is client:
                    committing = committing or b"COMMIT" in data
                    passed = self.rule(data)
                    if passed is None:
                        return
                    server.sendall(passed)
                elif committing and b"COMMIT\0" in data and self._lose_this_reply():
                    return
                else:
                    client.sendall(data)

    def _lose_this_reply(self) -> bool:
        with self._lock:
            lose = self._commit_replies_to_lose > 0
            self._commit_replies_to_lose -= lose
            self.lost_replies += lose
            return lose


@contextmanager
def proxy(dsn: str) -> Iterator[Proxy]:
    """A proxy before the server of a DSN; its own `dsn` leads through it."""
    with closing(Proxy(dsn)) as ours:
        yield ours


def _listen(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(64)
    return listener
