"""Detects that one of the processes of a training has died: collective operations may wait for it for hours.

Each process holds a connection to the first one, and says goodbye before it ends normally. A connection that breaks
without a goodbye belonged to a process that was killed, or to a machine that failed: the system closes the connections
of a killed process, and keep-alive messages detect a failed machine within half a minute.
"""

import os
import secrets
import selectors
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress

from maskkit.terminal import complain

GRACE = 15.0
"""Seconds that this process has to end by itself after another has died; then it is ended."""
MEETING = 30.0
"""Timeout of connecting, in seconds."""

_GOODBYE, _GONE = b"bye.", b"gone"
_HELLO = struct.Struct("!16sI")
"""A secret, so that only processes of this training count, and the number of the process."""
_TOLD = struct.Struct("!4sI")


class Peers:
    """The connections of process ``rank`` of ``world`` to the others, from `meet` to `close`."""

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world
        self._sockets: dict[socket.socket, int] = {}
        self._lost: int | None = None
        self._found, self._closed = threading.Event(), threading.Event()

    def meet(self, share: Callable[[Callable[[], tuple[int, bytes]]], tuple[int, bytes]]) -> None:
        """Connect the processes, all of which have to call this; ``share`` broadcasts the result of the first one.

        Raises ``OSError`` if that is not possible; then no death is detected.
        """
        if self.world == 1:
            return
        address = os.environ.get("MASTER_ADDR", "127.0.0.1")
        server: list[socket.socket] = []

        def listen() -> tuple[int, bytes]:
            with suppress(OSError):
                server.append(_listen(address))
            return server[0].getsockname()[1] if server else 0, secrets.token_bytes(16)

        port, secret = share(listen)
        if not port:
            raise OSError(f"the first process cannot listen on {address}")
        if self.rank == 0:
            with server[0]:
                self._accept(server[0], secret)
        else:
            connection = _kept_alive(socket.create_connection((address, port), MEETING))
            connection.sendall(_HELLO.pack(secret, self.rank))
            self._sockets[connection] = 0
        threading.Thread(target=self._watch, daemon=True).start()

    def lost(self, seconds: float = 2.0) -> int | None:
        """The number of a process that has died, after waiting for at most ``seconds``; None if there is none."""
        if self._sockets:
            self._found.wait(seconds)
        return self._lost

    def close(self, well: bool) -> None:
        """End the connections; with ``well`` after a goodbye, so that the others do not take this process for dead."""
        self._closed.set()
        for connection in self._sockets:
            with suppress(OSError):
                if well:
                    connection.sendall(_TOLD.pack(_GOODBYE, self.rank))
                connection.shutdown(socket.SHUT_WR)

    def _accept(self, server: socket.socket, secret: bytes) -> None:
        server.settimeout(MEETING)
        while len(self._sockets) < self.world - 1:
            connection = _kept_alive(server.accept()[0])
            told, rank = _HELLO.unpack(_read(connection, _HELLO.size) or bytes(_HELLO.size))
            if told == secret:
                self._sockets[connection] = rank
            else:
                connection.close()

    def _watch(self) -> None:
        """Wait for messages until a process has died, or all have said goodbye."""
        with selectors.DefaultSelector() as selector:
            for connection, rank in self._sockets.items():
                connection.settimeout(None)
                selector.register(connection, selectors.EVENT_READ, rank)
            while selector.get_map() and not self._closed.is_set():
                for key, _ in selector.select():
                    assert isinstance(key.fileobj, socket.socket)
                    kind, rank = _TOLD.unpack(_read(key.fileobj, _TOLD.size) or _TOLD.pack(_GONE, key.data))
                    if kind == _GONE and not self._closed.is_set():
                        return self._miss(rank)
                    selector.unregister(key.fileobj)

    def _miss(self, rank: int) -> None:
        """Process ``rank`` has died: tell the others, and end this process if it does not end by itself."""
        self._lost = rank
        self._found.set()
        for connection, other in self._sockets.items():
            if self.rank == 0 and other != rank:
                with suppress(OSError):
                    connection.sendall(_TOLD.pack(_GONE, rank))
        if not self._closed.wait(GRACE):
            complain(missing(rank, self.world))
            os._exit(1)


def missing(rank: int, world: int) -> str:
    """The message about a process that has died."""
    return (
        f"process {rank} of {world} that share this training (the first is 0) has ended before the others; see what "
        "it or its machine says, then go on with the same command and --resume"
    )


def _listen(address: str) -> socket.socket:
    family, _, _, _, place = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)[0]
    server = socket.socket(family, socket.SOCK_STREAM)
    server.bind(place)
    server.listen()
    return server


def _kept_alive(connection: socket.socket) -> socket.socket:
    """The connection, set to break half a minute after the other machine has failed."""
    connection.settimeout(MEETING)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return connection


def _read(connection: socket.socket, size: int) -> bytes | None:
    """``size`` bytes, or None if the connection ends before."""
    content = b""
    with suppress(OSError):
        while len(content) < size and (part := connection.recv(size - len(content))):
            content += part
    return content if len(content) == size else None
