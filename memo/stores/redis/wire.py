"""Blocking connections to a Redis server, each operation of which has a deadline; it knows no key and no value.

Commands go out together and their answers come back together: one round trip. What the client library does here is to
connect (TLS, AUTH, HELLO), to pack commands and to read answers. The socket below it is ours, and gives each call only
what is left of the operation's time: a server that sends a byte now and then cannot make an operation longer.
"""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Sequence
from typing import Any, Final

import redis
import redis.asyncio
import redis.asyncio.retry
import redis.retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, ResponseError

from ...errors import OptionError
from ...forks import fork_safe_lock
from ...stats import logger
from .commands import Command, Refusal, Reply

__all__ = ["AT_ONCE", "IDLE", "ClientWire", "Wire", "check_client", "connection_options", "refusal", "refused"]

IDLE: Final = 1.0
"""Seconds after which a connection that nobody has used is looked at before it is used: its server may be gone."""

AT_ONCE: Final = 4
"""Connections that are made at a time: those who wait for one are mostly served by one that comes back before."""

MOST: Final = 64
"""Connections that a process has to one server at a time, if the URL does not say `max_connections`."""


class TimedSocket:
    """A socket, each call of which has what is left until `deadline`."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.deadline: float | None = None  # of the monotonic clock; None: the socket's own timeout

    def _arm(self) -> None:
        if self.deadline is not None:
            left = self.deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("the operation's time is over")
            self._inner.settimeout(left)

    def recv(self, *args: Any) -> bytes:
        """Receive."""
        self._arm()
        data: bytes = self._inner.recv(*args)
        return data

    def recv_into(self, *args: Any) -> int:
        """Receive into memory."""
        self._arm()
        count: int = self._inner.recv_into(*args)
        return count

    def sendall(self, data: Any) -> None:
        """Send everything."""
        self._arm()
        self._inner.sendall(data)

    def settimeout(self, value: float | None) -> None:
        """Set the timeout that holds while there is no deadline."""
        if self.deadline is None:
            self._inner.settimeout(value)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def connection_options(url: str, connect_timeout: float, asynchronous: bool) -> tuple[type[Any], dict[str, Any], int]:
    """Return what a URL says: the class of its connections, their arguments and how many there may be.

    Raises:
        OptionError: it is no URL of a Redis server. Its text is not shown: there may be a password in it.
    """
    library: Any = redis.asyncio if asynchronous else redis
    retry: Any = redis.asyncio.retry.Retry if asynchronous else redis.retry.Retry
    try:
        pool: Any = library.ConnectionPool.from_url(url)
    except Exception as error:  # noqa: BLE001 - whatever it says may hold the URL
        raise OptionError(
            f"this is no URL of a Redis server ({type(error).__name__}): allowed are redis://host:6379/0, "
            f"rediss://host:6379/0 and unix:///path?db=0"
        ) from None
    options = dict(pool.connection_kwargs)
    if options.get("decode_responses"):
        raise OptionError("the URL says decode_responses: values are bytes, and only memo decodes them: leave it out")
    options.update(
        # While it connects; later the deadline holds.
        socket_timeout=None if asynchronous else connect_timeout,
        retry_on_timeout=False,
        retry=retry(NoBackoff(), 0),
        health_check_interval=0,
    )
    if "path" not in options:
        options["socket_connect_timeout"] = connect_timeout
    limit = pool.max_connections
    return pool.connection_class, options, limit if limit < 2**31 else MOST


class Wire:
    """The connections of one process to one server.

    Args:
        url: of the server.
        timeout: seconds for which an operation waits for a connection and then for the answers, in all.
        connect_timeout: seconds that connecting may take; that happens aside, and no operation waits for it longer.
    """

    def __init__(self, url: str, timeout: float, connect_timeout: float) -> None:
        inner, self._options, self._limit = connection_options(url, connect_timeout, asynchronous=False)
        self.timeout = timeout

        class Connection(inner):  # type: ignore[misc, valid-type]
            """As the URL says, over a socket of ours."""

            def _connect(self) -> Any:
                return TimedSocket(super()._connect())

        self._connection = Connection
        # Guards the fields below; waited on by those who need a connection.
        self._free = threading.Condition(fork_safe_lock())
        self._idle: list[tuple[Any, float]] = []  # with when it was used last, the latest at the end
        self._used = 0  # connections that somebody has
        self._waiting = 0  # callers that need one
        self._connecting = 0  # threads that are connecting
        self._failures: list[BaseException] = []  # the latest one
        self._failed = 0  # how many there were
        self._era = 0  # connections of an earlier one are not used again

    def call(self, commands: Sequence[Command]) -> list[Reply]:
        """Send commands in one go and return the answers; an error that the server answers is an answer.

        Raises:
            Exception: there was no answer in time: whatever the client library or the system raises.
        """
        deadline = time.monotonic() + self.timeout
        connection, era = self._take(deadline)
        try:
            sock = connection._sock
            sock.deadline = deadline
            connection.send_packed_command(connection.pack_commands(commands), check_health=False)
            replies: list[Reply] = []
            for _ in commands:
                try:
                    replies.append(connection.read_response())
                except ResponseError as error:  # noqa: PERF203 - each is an answer of its own
                    replies.append(refusal(error))
        except BaseException:
            # Answers that are still on their way must not be taken for those of the next operation.
            self._drop(connection)
            raise
        self._give_back(connection, era)
        return replies

    # -- connections -------------------------------------------------------------------------------------------------

    def _take(self, deadline: float) -> tuple[Any, int]:
        stale: list[Any] = []
        with self._free:
            seen = self._failed
            self._waiting += 1
            try:
                while True:
                    while self._idle:
                        connection, used = self._idle.pop()
                        if time.monotonic() - used < IDLE or not _readable(connection):
                            self._used += 1
                            return connection, self._era
                        stale.append(connection)
                    if self._failed != seen and not self._connecting:
                        raise self._failures[-1]
                    if self._connecting < min(self._waiting, AT_ONCE) and self._connecting + self._used < self._limit:
                        self._begin()
                    left = deadline - time.monotonic()
                    if left <= 0 or not self._free.wait(left):
                        raise TimeoutError("no connection to the server in time")
            finally:
                self._waiting -= 1
                for each in stale:
                    _close(each)

    def _begin(self) -> None:
        """Have one more connection made, aside; the lock is held."""
        self._connecting += 1
        try:
            threading.Thread(target=self._connect, args=(self._era,), name="memo-connect", daemon=True).start()
        except BaseException:
            self._connecting -= 1
            raise

    def _connect(self, era: int) -> None:
        connection = None
        try:
            connection = self._connection(**self._options)
            connection.connect()
        except BaseException as error:  # noqa: BLE001 - whoever waits raises it
            with self._free:
                if era == self._era:
                    self._connecting -= 1
                    self._failures[:] = [error]
                    self._failed += 1
                    self._free.notify_all()
            return
        with self._free:
            if era == self._era:
                self._connecting -= 1
                self._idle.append((connection, time.monotonic()))
                self._free.notify()
                return
        _close(connection)

    def _give_back(self, connection: Any, era: int) -> None:
        connection._sock.deadline = None
        with self._free:
            if era == self._era:
                self._used -= 1
                self._idle.append((connection, time.monotonic()))
                self._free.notify()
                return
        _close(connection)

    def _drop(self, connection: Any) -> None:
        with self._free:
            self._used = max(0, self._used - 1)
            # Where one is broken the others may be: a server that was restarted has closed them all.
            rest, self._idle = self._idle, []
            self._free.notify()
        for each, _ in rest:
            _close(each)
        _close(connection)

    def close(self) -> None:
        """Close the connections that nobody uses; the others are closed when they are given back."""
        with self._free:
            rest, self._idle = self._idle, []
            self._era += 1
            self._used = self._connecting = 0
            self._free.notify_all()
        for each, _ in rest:
            _close(each)


def _readable(connection: Any) -> bool:
    """Return whether there is something to read where nothing was asked: the end, above all."""
    try:
        poll = select.poll()  # unlike select, it takes any descriptor
        poll.register(connection._sock.fileno(), select.POLLIN)
        return bool(poll.poll(0))
    except (OSError, ValueError, AttributeError):
        return True


def _close(connection: Any) -> None:
    try:
        connection.disconnect()
    except Exception as error:  # noqa: BLE001 - it is of no use any more
        logger.debug("a connection could not be closed (%s)", type(error).__name__)


def check_client(client: Any) -> None:
    """Raise OptionError if a client does not give bytes."""
    if client.connection_pool.connection_kwargs.get("decode_responses"):
        raise OptionError("the client was made with decode_responses=True: values are bytes: make it without")


def refusal(error: ResponseError) -> Refusal:
    """Return what a server has answered, without a text that may hold a key."""
    if isinstance(error, NoScriptError):
        return Refusal("NOSCRIPT")  # the client library has taken that word off
    return Refusal((str(error).split() or [type(error).__name__])[0][:40])


def refused(reply: Reply) -> Reply:
    """Return a reply as this module gives it."""
    if isinstance(reply, ResponseError):
        return refusal(reply)
    if isinstance(reply, Exception):
        raise reply
    return reply


class ClientWire:
    """A client that somebody else has made, in the place of connections of our own; its deadlines are its own."""

    def __init__(self, client: Any) -> None:
        check_client(client)
        self._client = client

    @staticmethod
    def takes(client: Any) -> bool:
        """Return whether this is a client that blocks."""
        return isinstance(client, redis.Redis)

    def call(self, commands: Sequence[Command]) -> list[Reply]:
        """Send commands in one go and return the answers; an error that the server answers is an answer."""
        pipeline = self._client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        return [refused(reply) for reply in pipeline.execute(raise_on_error=False)]

    def close(self) -> None:
        """Do nothing: whoever has made the client closes it."""
