"""Blocking connections to a Redis server, each operation of which has a deadline; it knows no key and no value.

Commands go out together and their answers come back together: one round trip. What the client library does here is to
connect (TLS, AUTH, HELLO), to pack commands and to read answers. The socket below it is ours, and gives each call only
what is left of the operation's time: a server that sends a byte now and then cannot make an operation longer.
"""

from __future__ import annotations

import select
import threading
import time
import weakref
from collections.abc import Sequence
from typing import Any, Final

import redis
import redis.asyncio
import redis.asyncio.retry
import redis.retry
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError

from ...errors import OptionError, StoreError
from ...forks import fork_safe_lock
from ...stats import logger
from .answers import SIZE, Answers, answers_of, pack
from .commands import Command, NoConnection, Refusal, Reply, check

__all__ = [
    "AT_ONCE",
    "BUSY",
    "ClientWire",
    "Wire",
    "check_client",
    "connection_options",
    "hung_up",
    "refused",
]

IDLE: Final = 1.0
"""Seconds after which a connection that nobody has used is looked at before it is used: its server may be gone."""

AT_ONCE: Final = 4
"""Connections that are made at a time: those who wait for one are mostly served by one that comes back before."""

MOST: Final = 64
"""Connections that a process, or an event loop, has to one server, if the URL does not say `max_connections`."""

BUSY: Final = "all connections to the Redis server are in use: allow more (max_connections= in the URL)"


class TimedSocket:
    """A socket, each call of which has what is left until `deadline`."""

    def __init__(self, inner: Any, deadline: float | None) -> None:
        self._inner = inner
        self.deadline = deadline  # of the monotonic clock; None: the socket's own timeout

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
        """Send everything; not by the `sendall` below, which over TLS would have the time anew for each piece."""
        self._arm()
        sent = self._inner.send(data)
        if sent == len(data):
            return
        rest = memoryview(data)[sent:]
        while rest:
            self._arm()
            rest = rest[self._inner.send(rest) :]

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
        options = dict(library.connection.parse_url(url))
        kind = options.pop("connection_class", library.Connection)
        limit = options.pop("max_connections", MOST)
        options.update(
            # While it connects; later the deadline holds.
            socket_timeout=None if asynchronous else connect_timeout,
            retry_on_timeout=False,
            retry=retry(NoBackoff(), 0),
            health_check_interval=0,
        )
        if "path" not in options:
            options["socket_connect_timeout"] = connect_timeout
        kind(**options)  # it is not connected; an option that there is not is found now
    except Exception as error:  # noqa: BLE001 - whatever it says may hold the URL
        raise OptionError(
            f"this is no URL of a Redis server ({type(error).__name__}): allowed are redis://host:6379/0, "
            f"rediss://host:6379/0 and unix:///path?db=0, and behind a ? the options of redis-py's connections"
        ) from None
    if options.get("decode_responses"):
        raise OptionError("the URL says decode_responses: values are bytes, and only memo decodes them: leave it out")
    if limit < 1:
        raise OptionError(f"the URL says max_connections={limit}: allowed is 1 or more")
    return kind, options, limit


class Wire:
    """The connections of one process to one server.

    Args:
        url: of the server.
        connect_timeout: seconds that connecting may take; that happens aside, and no operation waits for it longer.
    """

    def __init__(self, url: str, connect_timeout: float) -> None:
        inner, self._options, self._limit = connection_options(url, connect_timeout, asynchronous=False)

        class Connection(inner):  # type: ignore[misc, valid-type]  # which class that is, the URL says
            """As the URL says, over a socket of ours."""

            answers: Answers | None = None
            era: object = None

            def _connect(self) -> Any:
                deadline = time.monotonic() + connect_timeout
                return TimedSocket(super()._connect(), deadline)

        self._connection = Connection
        # Guards the fields below. It is entered itself, and not through the condition, whose `__enter__` a Ctrl-C can
        # leave with the lock taken. No field is a count that is wrong for ever if somebody is interrupted.
        self._lock = fork_safe_lock()
        self._free = threading.Condition(self._lock)  # waited on by those who need a connection
        self._all: weakref.WeakSet[Any] = weakref.WeakSet()  # idle or in use; those that somebody lost count no more
        self._era = object()  # another one when it was closed: connections of before are not given back
        self._idle: list[tuple[Any, float]] = []  # with when it was used last, the latest at the end
        self._waiting = 0  # callers that need one
        self._connecting: set[object] = set()  # of each thread that is connecting
        self._failure = ""  # what the latest failure to connect was
        self._failed = 0  # how many there were

    def call(self, commands: Sequence[Command], deadline: float) -> list[Reply]:
        """Send commands in one go and return the answers; an error that the server answers is an answer.

        Args:
            commands: what is asked.
            deadline: of the monotonic clock, for the wait for a connection and for the answers, in all.

        Raises:
            StoreError: every connection that is allowed was in use.
            Exception: there was no answer in time: whatever the client library or the system raises.
        """
        connection = self._take(deadline)
        try:
            sock = connection._sock
            sock.deadline = deadline
            unsent = _send(sock, pack(commands))
            replies = _heard(connection, len(commands))
            if hung_up(replies):
                self._drop(connection, alone=True)
                return refused(replies + replies[-1:] * (len(commands) - len(replies)))
            refused(replies)
            if unsent is not None:
                raise unsent
            check(commands, replies)
            self._give_back(connection)
        except BaseException as error:
            # Answers that are still on their way must not be taken for those of the next operation.
            self._drop(connection, alone=not isinstance(error, Exception))
            raise
        return replies

    # -- connections -------------------------------------------------------------------------------------------------

    def _take(self, deadline: float) -> Any:
        stale: list[Any] = []
        with self._lock:
            seen = self._failed
            self._waiting += 1
            try:
                while True:
                    while self._idle:
                        connection, used = self._idle.pop()
                        if time.monotonic() - used < IDLE or not _readable(connection):
                            return connection
                        self._all.discard(connection)
                        stale.append(connection)
                    if self._failed != seen:
                        if not self._connecting:  # else another one may succeed
                            raise NoConnection(self._failure)
                    elif self._short():
                        self._begin()
                    left = deadline - time.monotonic()
                    if left <= 0:
                        if len(self._all) >= self._limit:
                            raise StoreError(BUSY)
                        raise TimeoutError("no connection to the server in time")
                    self._free.wait(left)
            finally:
                self._waiting -= 1
                if self._idle and self._waiting:
                    self._free.notify()  # this one may have been woken for what it leaves behind
                for each in stale:
                    _close(each)

    def _short(self) -> bool:
        """Return whether one more connection should be made; the lock is held."""
        return (
            len(self._connecting) < min(self._waiting - len(self._idle), AT_ONCE)
            and len(self._connecting) + len(self._all) < self._limit
        )

    def _begin(self) -> None:
        """Have one more connection made, aside; the lock is held."""
        token = object()
        try:
            self._connecting.add(token)
            threading.Thread(target=self._connect, args=(token,), name="memo-connect", daemon=True).start()
        except BaseException:
            self._connecting.discard(token)  # if it runs all the same, it will see that nobody wants it
            raise

    def _connect(self, token: object) -> None:
        """Make a connection, and more while callers wait; `token` is gone when they are not wanted any more."""
        while True:
            connection = None
            try:
                connection = self._connection(**self._options)
                connection.connect()
                connection._sock.deadline = None
                connection.answers, connection.buffer = answers_of(connection), bytearray(SIZE)
            except BaseException as error:  # noqa: BLE001 - whoever waits says so
                with self._lock:
                    if token in self._connecting:
                        self._connecting.discard(token)
                        self._failure, self._failed = type(error).__name__, self._failed + 1
                        self._free.notify_all()
                break
            with self._lock:
                if token not in self._connecting:
                    break
                self._connecting.discard(token)
                connection.era = self._era
                self._all.add(connection)
                self._idle.append((connection, time.monotonic()))
                self._free.notify()
                if not self._short():
                    return
                self._connecting.add(token)
        if connection is not None:
            _close(connection)

    def _give_back(self, connection: Any) -> None:
        connection._sock.deadline = None
        with self._lock:
            if connection.era is self._era:
                self._idle.append((connection, time.monotonic()))
                self._free.notify()
                return
        _close(connection)

    def _drop(self, connection: Any, alone: bool) -> None:
        """Close a connection; unless it `alone` is the matter, those that nobody uses too.

        Where one is broken the others may be: a server that was restarted has closed them all.
        """
        with self._lock:
            self._all.discard(connection)
            rest: list[Any] = []
            if not alone or any(each is connection for each, _ in self._idle):
                rest, self._idle = [each for each, _ in self._idle], []
                self._all.difference_update(rest)
            self._free.notify()
        for each in rest:
            _close(each)
        _close(connection)

    def close(self) -> None:
        """Close the connections that nobody uses; the others are closed when they are given back."""
        with self._lock:
            rest, self._idle = self._idle, []
            self._all = weakref.WeakSet()
            self._era = object()
            self._connecting.clear()
            self._free.notify_all()
        for each, _ in rest:
            _close(each)

    def forget(self) -> None:
        """Let go of everything, in a child of fork: nobody waits, uses or connects here, whatever the parent did.

        The client library closes its side only: the parent goes on with the connections.
        """
        rest = list(self._all)
        self._free = threading.Condition(self._lock)
        self._waiting = 0
        self.close()
        for each in rest:
            _close(each)


def _send(sock: Any, data: bytes) -> OSError | None:
    """Send all; where the peer takes no more, return that: it may have said why before it hung up."""
    try:
        sock.sendall(data)
    except TimeoutError:
        raise
    except OSError as error:
        return error
    return None


def _heard(connection: Any, count: int) -> list[Reply]:
    """Return the answers to some commands, errors among them; fewer than there are commands if the server hangs up."""
    answers: Answers | None = connection.answers
    replies: list[Reply] = []
    if answers is None:
        while len(replies) < count and not hung_up(replies):
            try:
                replies.append(connection.read_response())
            except ResponseError as error:  # noqa: PERF203 - each is an answer of its own
                replies.append(error)
    else:
        sock, buffer = connection._sock, connection.buffer
        while not answers.take(replies, count) and not hung_up(replies):
            size = sock.recv_into(buffer)
            if not size:
                raise ConnectionError("the server has closed the connection")
            answers.feed(buffer, 0, size)
    return replies


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


# The client library takes the first word off these; not every version of it has all of them.
_WORDS: Final = {
    "ClusterCrossSlotError": "CROSSSLOT",
    "ClusterDownError": "CLUSTERDOWN",
    "MasterDownError": "MASTERDOWN",
    "MovedError": "MOVED",
    "NoPermissionError": "NOPERM",
    "NoScriptError": "NOSCRIPT",
    "OutOfMemoryError": "OOM",
    "ReadOnlyError": "READONLY",
}


def refusal(error: ResponseError) -> Refusal:
    """Return what a server has answered, without a text that may hold a key."""
    word = _WORDS.get(type(error).__name__) or (str(error).split() or [""])[0][:40]
    return Refusal(word if word.isalpha() and word.isupper() else "ERR")


def hung_up(replies: Sequence[Reply]) -> bool:
    """Return whether the server closes the connection after these answers: what was sent was too large for it."""
    last = replies[-1] if replies else None
    return isinstance(last, ResponseError) and str(last).startswith("Protocol error")


def refused(replies: list[Reply]) -> list[Reply]:
    """Return the same answers, with a Refusal in the place of each error that is one.

    Raises:
        Exception: one is none: the server is not ready, for one.
    """
    for index, reply in enumerate(replies):
        if isinstance(reply, ResponseError):
            replies[index] = refusal(reply)
        elif isinstance(reply, Exception):
            raise reply
    return replies


class ClientWire:
    """A client that somebody else has made, in the place of connections of our own; its deadlines are its own."""

    def __init__(self, client: Any) -> None:
        check_client(client)
        self._client = client

    @staticmethod
    def takes(client: Any) -> bool:
        """Return whether this is a client that blocks."""
        return isinstance(client, redis.Redis) and not isinstance(client, redis.client.Pipeline)

    def call(self, commands: Sequence[Command], deadline: float) -> list[Reply]:
        """Send commands in one go and return the answers; an error that the server answers is an answer."""
        pipeline = self._client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        replies = refused(pipeline.execute(raise_on_error=False))
        check(commands, replies)
        return replies

    def close(self) -> None:
        """Do nothing: whoever has made the client closes it."""

    def forget(self) -> None:
        """Do nothing: the client notices by itself that it is in a child of fork."""
