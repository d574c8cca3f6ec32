"""A TCP proxy on loopback that does to each connection what it is told: pass, refuse, answer 500, delay, cut."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

PASS, REFUSE, ERROR, CUT = "pass", "refuse", "error", "cut"
ANSWER = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@dataclass
class Proxy:
    """What happens to the next connections: the faults in order, then `after` for ever."""

    target: tuple[str, int]
    faults: list[str] = field(default_factory=list)
    after: str = PASS
    cut_after: int = 200
    """Bytes of an answer that pass before a cut."""
    delay: float = 0
    """Seconds before each connection is served."""
    met: list[str] = field(default_factory=list)
    """What was done so far."""

    def __post_init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.lock = threading.Lock()
        self.open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def drop(self) -> None:
        """Cut every connection that is open now: clients keep theirs alive between requests."""
        with self.lock:
            sockets, self.open = list(self.open), set()
        for each in sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def leave(self) -> None:
        """Nobody listens any more, and what was connected is cut."""
        with suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)  # a thread that accepts would keep it open
        self.listener.close()
        self.drop()

    def come_back(self) -> None:
        """Listen on the same port again."""
        self.listener = socket.create_server(("127.0.0.1", self.port))
        self.fail()
        threading.Thread(target=self._accept, daemon=True).start()

    def fail(self, *faults: str, after: str = PASS) -> None:
        """From now on: these faults, one a connection, then `after`."""
        self.faults, self.after, self.met = list(faults), after, []
        self.drop()

    def close(self) -> None:
        self.leave()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with self.lock:
            what = self.faults.pop(0) if self.faults else self.after
            self.met.append(what)
            self.open.add(client)
        with suppress(OSError), client:
            time.sleep(self.delay)
            if what == REFUSE:
                return
            if what == ERROR:
                client.recv(65536)
                client.sendall(ANSWER)
                return
            with socket.create_connection(self.target) as server:
                with self.lock:
                    self.open.add(server)
                up = threading.Thread(target=_copy, args=(client, server, None), daemon=True)
                up.start()
                _copy(server, client, self.cut_after if what == CUT else None)
                for each in (client, server):
                    with suppress(OSError):
                        each.shutdown(socket.SHUT_RDWR)
                up.join()


def _copy(source: socket.socket, sink: socket.socket, limit: int | None) -> None:
    left = limit
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data if left is None else data[:left])
            if left is not None:
                left -= len(data)
                if left <= 0:
                    return


@contextmanager
def before(address: str) -> Iterator[Proxy]:
    """A proxy before HOST:PORT, with or without a scheme."""
    host, _, port = address.rsplit("/", 1)[-1].rsplit("@", 1)[-1].partition(":")
    proxy = Proxy((host, int(port)))
    try:
        yield proxy
    finally:
        proxy.close()
