"""Awaited connections to a Redis server, a pool for each event loop; each operation has a deadline.

A pool belongs to its loop: it is used there only, so that it needs no lock, and is closed when the loop shuts down.
Loops that were closed in another way leave connections behind, which are dropped when the next loop comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Sequence
from functools import partial
from typing import Any

import redis.asyncio
from redis.exceptions import ResponseError

from ...errors import StoreError
from ...forks import fork_safe_lock
from .answers import Answers, answers_of, pack
from .commands import Command, NoConnection, Reply, check
from .wire import AT_ONCE, BUSY, check_client, connection_options, hung_up, refused

__all__ = ["AsyncClientWire", "AsyncWire"]


class LoopPool:
    """The connections of one event loop.

    While somebody waits, a connection is on its way to him: one that is being made, or one in use, which is handed to
    whoever waits longest when it comes back, and makes room for another one when it is dropped.

    Args:
        wire: whose they are.
        loop: in which all of this runs.
    """

    def __init__(self, wire: AsyncWire, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.closed = False  # it serves only those who have come before
        self._wire = wire
        self._all: set[Any] = set()  # those in use and those that are being made too
        self._idle: list[Any] = []  # the one used last at the end
        self._waiters: OrderedDict[asyncio.Future[Any], None] = OrderedDict()
        self._connecting: set[asyncio.Task[None]] = set()
        self._asked: dict[Any, float] = {}  # connections on which somebody waits for answers, and until when
        self._timer: asyncio.TimerHandle | None = None  # one for all of these, since few are late
        self._first = 0.0  # when it comes: not later than the earliest of them
        self._end: AsyncGenerator[None, None] | None = None

    async def prime(self) -> None:
        """Have this pool closed when the loop shuts its async generators down."""
        self._end = self._until_the_end()
        await self._end.__anext__()

    async def _until_the_end(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            self.close()
            await asyncio.sleep(0)  # the transports say goodbye in the loop's next round

    async def call(self, commands: Sequence[Command], deadline: float) -> list[Reply]:
        """Send commands in one go and return the answers."""
        connection = self._ready() or await self._take(deadline)
        try:
            self._asked[connection] = deadline
            if self._timer is None or deadline < self._first:
                self._watch(deadline)
            listener: Listener | None = connection.listener
            heard = _heard(connection, len(commands)) if listener is None else listener.hear(len(commands))
            # Nobody waits until all is sent: a server that hangs up meanwhile may have said why.
            connection._writer.write(pack(commands))
            replies = await heard
            if hung_up(replies):
                self._drop(connection, alone=True)
                return refused(replies + replies[-1:] * (len(commands) - len(replies)))
            check(commands, refused(replies))
        except BaseException as error:
            # Answers that are still on their way must not be taken for those of the next operation.
            late = connection not in self._asked
            self._drop(connection, alone=not isinstance(error, Exception))
            if late and isinstance(error, Exception):
                raise TimeoutError("the server has not answered in time") from None
            raise
        finally:
            self._asked.pop(connection, None)
        if connection._writer is None:  # its time was over when the last answer had just come
            self._drop(connection, alone=True)
        else:
            self._offer(connection)
        return replies

    def _watch(self, deadline: float) -> None:
        """Look at that time whether somebody has waited for too long."""
        if self._timer is not None:
            self._timer.cancel()
        self._first = deadline
        self._timer = self.loop.call_later(deadline - time.monotonic(), self._give_up)

    def _give_up(self) -> None:
        """End the connections whose time is over, and so the waiting for them."""
        self._timer = None
        now = time.monotonic()
        for connection in [each for each, deadline in self._asked.items() if deadline <= now]:
            del self._asked[connection]
            _abort(connection)
            if connection.listener is not None:
                connection.listener.connection_lost(None)  # whatever the transport says, and when
        if self._asked:
            self._watch(min(self._asked.values()))

    def _ready(self) -> Any:
        """Return a connection that nobody uses, None if there is none."""
        while self._idle:
            connection = self._idle.pop()
            if not _ended(connection):
                return connection
            self._discard(connection)
        return None

    async def _take(self, deadline: float) -> Any:
        ready = self._ready()
        if ready is not None:
            return ready
        waiter: asyncio.Future[Any] = self.loop.create_future()
        self._waiters[waiter] = None
        timer = self.loop.call_later(deadline - time.monotonic(), self._late, waiter)
        try:
            self._grow()
            return await waiter
        except BaseException:
            # 1. a connection is handed to a waiter   2. his task is cancelled, before it has run
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._offer(waiter.result())
            raise
        finally:
            timer.cancel()
            self._waiters.pop(waiter, None)

    def _late(self, waiter: asyncio.Future[Any]) -> None:
        if not waiter.done():
            busy = len(self._all) - len(self._connecting) >= self._wire.limit
            waiter.set_exception(StoreError(BUSY) if busy else TimeoutError("no connection to the server in time"))

    def _grow(self) -> None:
        """Have connections made for those who wait."""
        while len(self._connecting) < min(len(self._waiters), AT_ONCE) and len(self._all) < self._wire.limit:
            connection = self._wire.connection()
            self._all.add(connection)
            task = self.loop.create_task(self._connect(connection), name="memo connect")
            self._connecting.add(task)
            task.add_done_callback(partial(self._connected, connection))

    async def _connect(self, connection: Any) -> None:
        await asyncio.wait_for(connection.connect(), self._wire.connect_timeout)
        answers = answers_of(connection)
        connection.listener = None if answers is None else Listener(answers, connection, asyncio.get_running_loop())

    def _connected(self, connection: Any, task: asyncio.Task[None]) -> None:
        self._connecting.discard(task)
        failure = asyncio.CancelledError() if task.cancelled() else task.exception()
        if failure is None:
            self._offer(connection)
            self._grow()
            return
        self._discard(connection)
        if not self._connecting:  # else another one may succeed
            self._refuse(type(failure).__name__)

    def _refuse(self, kind: str) -> None:
        """Tell all who wait that they get nothing."""
        while self._waiters:
            waiter, _ = self._waiters.popitem(last=False)
            if not waiter.done():
                waiter.set_exception(NoConnection(kind))

    def _offer(self, connection: Any) -> None:
        """Hand a connection to whoever waits longest."""
        while self._waiters:
            waiter, _ = self._waiters.popitem(last=False)
            if not waiter.done():
                waiter.set_result(connection)
                return
        if self.closed:
            self._discard(connection)
        else:
            self._idle.append(connection)

    def _drop(self, connection: Any, alone: bool) -> None:
        """Close a connection; unless it `alone` is the matter, those that nobody uses too.

        Where one is broken the others may be: a server that was restarted has closed them all.
        """
        self._discard(connection)
        if not alone:
            rest, self._idle = self._idle, []
            for each in rest:
                self._discard(each)
        self._grow()

    def _discard(self, connection: Any) -> None:
        self._all.discard(connection)
        _abort(connection)

    def retire(self) -> None:
        """Close what nobody uses, and the rest when it is given back."""
        self.closed = True
        rest, self._idle = self._idle, []
        for connection in rest:
            self._discard(connection)

    def close(self) -> None:
        """Close all connections, at once."""
        self.retire()
        for task in list(self._connecting):
            task.cancel()
        for connection in list(self._all):
            self._discard(connection)
        if self._timer is not None:
            self._timer.cancel()
        self._refuse("the event loop ends")

    def abandon(self) -> None:
        """Let go of everything where the loop does not run: it is closed, or the parent's of a fork."""
        self.closed = True
        for connection in list(self._all):
            _cut(connection)
        self._all.clear()
        self._idle.clear()


class Listener(asyncio.Protocol):
    """Hears what comes on a connection, in the place of the stream through which the client library has made it.

    Args:
        answers: makes answers of bytes.
        connection: was just made.
        loop: in which it lives.
    """

    def __init__(self, answers: Answers, connection: Any, loop: asyncio.AbstractEventLoop) -> None:
        self.over = False  # it has ended, or something came where nothing was asked
        self._answers = answers
        self._loop = loop
        self._replies: list[Reply] = []
        self._count = 0
        self._waiter: asyncio.Future[list[Reply]] | None = None
        answers.feed(bytes(connection._reader._buffer))  # what the server says without being asked, if anything
        connection._writer.transport.set_protocol(self)

    def hear(self, count: int) -> asyncio.Future[list[Reply]]:
        """Return the answers to some commands, errors among them; fewer than there are commands if the server hangs up.

        That is to be awaited, and asked for before the commands are sent.

        Raises:
            ConnectionError: it was over before anyone asked; nobody would be told of that again.
        """
        if self.over:
            raise ConnectionError("the server has closed the connection")
        self._replies, self._count, self._waiter = [], count, self._loop.create_future()
        return self._waiter

    def data_received(self, data: bytes) -> None:
        """Take bytes that have come."""
        waiter = self._waiter
        if waiter is None or waiter.done():
            self.over = True
            return
        try:
            self._answers.feed(data)
            if self._answers.take(self._replies, self._count) or hung_up(self._replies):
                waiter.set_result(self._replies)
        except Exception as error:  # noqa: BLE001 - whatever it is, whoever waits has it
            waiter.set_exception(error)

    def connection_lost(self, error: Exception | None) -> None:
        """Tell whoever waits that nothing more will come."""
        self.over = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error or ConnectionError("the server has closed the connection"))


async def _heard(connection: Any, count: int) -> list[Reply]:
    """Do what `Listener.hear` does where the client library has to read."""
    replies: list[Reply] = []
    while len(replies) < count and not hung_up(replies):
        try:
            replies.append(await connection.read_response(disconnect_on_error=False))
        except ResponseError as error:  # noqa: PERF203 - each is an answer of its own
            replies.append(error)
    return replies


def _abort(connection: Any) -> None:
    writer = connection._writer
    connection._writer = connection._reader = None
    if writer is not None:
        with contextlib.suppress(RuntimeError):  # its loop is closed
            writer.transport.abort()


def _cut(connection: Any) -> None:
    """Close the socket below, where the loop that would do so is gone; what is the loop's own is not touched.

    Else the transports warn, when they are collected, that nobody has closed them: nobody can any more.
    """
    writer = connection._writer
    connection._writer = connection._reader = None
    if writer is None:
        return
    transport = writer.transport
    encrypted = getattr(transport, "_ssl_protocol", None)
    if encrypted is not None:
        transport._closed = True
        transport = encrypted._transport
    raw = getattr(transport, "_sock", None)
    if raw is not None:
        transport._sock, transport._closing = None, True
        raw.close()


def _ended(connection: Any) -> bool:
    """Return whether a connection is over, or something came where nothing was asked."""
    reader, listener = connection._reader, connection.listener
    if listener is not None:
        return listener.over or connection._writer is None
    return reader is None or reader.at_eof() or reader.exception() is not None or bool(reader._buffer)


class AsyncWire:
    """The connections of one process to one server, for functions that await.

    Args:
        url: of the server.
        connect_timeout: seconds that connecting may take; that happens aside, and no operation waits for it longer.
    """

    def __init__(self, url: str, connect_timeout: float) -> None:
        self._class, self._options, self.limit = connection_options(url, connect_timeout, asynchronous=True)
        self.connect_timeout = connect_timeout
        # Guards the following.
        self._lock = fork_safe_lock()
        self._pools: dict[int, LoopPool] = {}  # by the loop's id

    def connection(self) -> Any:
        """Return a connection that is not connected yet."""
        return self._class(**self._options)

    def call(self, commands: Sequence[Command], deadline: float) -> Awaitable[list[Reply]]:
        """Send commands in one go and return the answers; an error that the server answers is an answer.

        Args:
            commands: what is asked.
            deadline: of the monotonic clock, for the wait for a connection and for the answers, in all.

        Raises:
            StoreError: every connection that is allowed was in use.
            Exception: there was no answer in time: whatever the client library or the system raises.
        """
        pool = self._pool(asyncio.get_running_loop())
        return self._begin(commands, deadline) if pool is None else pool.call(commands, deadline)

    async def _begin(self, commands: Sequence[Command], deadline: float) -> list[Reply]:
        loop = asyncio.get_running_loop()
        pool = self._pool(loop)  # another task may have made it since
        return await (pool or await self._new(loop)).call(commands, deadline)

    def _pool(self, loop: asyncio.AbstractEventLoop) -> LoopPool | None:
        pool = self._pools.get(id(loop))
        return None if pool is None or pool.loop is not loop or pool.closed else pool

    async def _new(self, loop: asyncio.AbstractEventLoop) -> LoopPool:
        pool = LoopPool(self, loop)
        with self._lock:
            gone = [each for each in self._pools.values() if each.loop.is_closed()]
            self._pools = {ident: each for ident, each in self._pools.items() if each not in gone}
            self._pools[id(loop)] = pool
        for each in gone:
            each.abandon()
        await pool.prime()
        return pool

    async def aclose(self) -> None:
        """Close the connections of this loop that nobody uses; those of others are closed with their loops."""
        pool = self._pools.get(id(asyncio.get_running_loop()))
        if pool is not None:
            pool.retire()
            await asyncio.sleep(0)

    def close(self) -> None:
        """Have the connections of all loops closed that nobody uses, each by its loop; from outside of every loop."""
        for pool in list(self._pools.values()):
            try:
                pool.loop.call_soon_threadsafe(pool.retire)
            except RuntimeError:  # noqa: PERF203 - it is closed
                pool.abandon()

    def forget(self) -> None:
        """Let go of all pools, in a child of fork; the parent goes on with the connections."""
        with self._lock:
            pools, self._pools = list(self._pools.values()), {}
        for pool in pools:
            pool.abandon()


class AsyncClientWire:
    """A client that somebody else has made, in the place of connections of our own; its deadlines are its own."""

    def __init__(self, client: Any) -> None:
        check_client(client)
        self._client = client

    @staticmethod
    def takes(client: Any) -> bool:
        """Return whether this is a client that awaits."""
        return isinstance(client, redis.asyncio.Redis) and not isinstance(client, redis.asyncio.client.Pipeline)

    async def call(self, commands: Sequence[Command], deadline: float) -> list[Reply]:
        """Send commands in one go and return the answers; an error that the server answers is an answer."""
        pipeline = self._client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        replies = refused(await pipeline.execute(raise_on_error=False))
        check(commands, replies)
        return replies

    async def aclose(self) -> None:
        """Do nothing: whoever has made the client closes it."""

    def close(self) -> None:
        """Do nothing, either."""

    def forget(self) -> None:
        """Do nothing, either."""
