"""Awaited connections to a Redis server, a pool for each event loop; each operation has a deadline.

A pool belongs to its loop: it is used there only, so that it needs no lock, and is closed when the loop shuts down.
Loops that were closed in another way leave connections behind, which are dropped when the next loop comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import redis.asyncio
from redis.exceptions import ResponseError

from ...forks import fork_safe_lock
from .commands import Command, Reply
from .wire import AT_ONCE, IDLE, check_client, connection_options, refusal, refused

__all__ = ["AsyncClientWire", "AsyncWire"]


class LoopPool:
    """The connections of one event loop.

    Args:
        wire: whose they are.
        loop: in which all of this runs.
    """

    def __init__(self, wire: AsyncWire, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._wire = wire
        self._idle: list[tuple[Any, float]] = []  # with when it was used last, the latest at the end
        self._all: set[Any] = set()  # those in use too
        self._waiters: list[asyncio.Future[None]] = []
        self._connecting: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        self._failed = 0
        self._closed = False
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

    async def call(self, commands: Sequence[Command]) -> list[Reply]:
        """Send commands in one go and return the answers."""
        deadline = self.loop.time() + self._wire.timeout
        connection = await self._take(deadline)
        late: list[bool] = []

        def give_up() -> None:
            late.append(True)
            _abort(connection)

        timer = self.loop.call_at(deadline, give_up)
        try:
            writer = connection._writer
            writer.writelines(connection.pack_commands(commands))
            await writer.drain()
            replies: list[Reply] = []
            for _ in commands:
                try:
                    replies.append(await connection.read_response(disconnect_on_error=False))
                except ResponseError as error:  # noqa: PERF203 - each is an answer of its own
                    replies.append(refusal(error))
        except BaseException as error:
            # Answers that are still on their way must not be taken for those of the next operation.
            self._drop(connection)
            if late and isinstance(error, Exception):
                raise TimeoutError("the server has not answered in time") from None
            raise
        finally:
            timer.cancel()
        self._give_back(connection)
        return replies

    async def _take(self, deadline: float) -> Any:
        seen = self._failed
        while True:
            while self._idle:
                connection, used = self._idle.pop()
                if connection.is_connected and not (time.monotonic() - used >= IDLE and _ended(connection)):
                    return connection
                self._discard(connection)
            if self._failed != seen and not self._connecting and self._failure is not None:
                raise self._failure
            if len(self._connecting) < min(len(self._waiters) + 1, AT_ONCE) and len(self._all) < self._wire.limit:
                task = self.loop.create_task(self._connect(), name="memo connect")
                self._connecting.add(task)
                task.add_done_callback(self._connecting.discard)
            left = deadline - self.loop.time()
            if left <= 0:
                raise TimeoutError("no connection to the server in time")
            waiter: asyncio.Future[None] = self.loop.create_future()
            self._waiters.append(waiter)
            try:
                await asyncio.wait([waiter], timeout=left)
            finally:
                if waiter in self._waiters:
                    self._waiters.remove(waiter)
                elif waiter.done() and self._idle and self._waiters:
                    self._wake()  # this one was woken, and may leave without what it was woken for

    async def _connect(self) -> None:
        connection = self._wire.connection()
        self._all.add(connection)
        try:
            await asyncio.wait_for(connection.connect(), self._wire.connect_timeout)
        except BaseException as error:
            self._discard(connection)
            self._connecting.discard(asyncio.current_task())
            self._failure, self._failed = error, self._failed + 1
            while self._waiters:
                self._wake()
            if not isinstance(error, Exception):
                raise
        else:
            self._give_back(connection)

    def _give_back(self, connection: Any) -> None:
        if self._closed:
            self._discard(connection)
        else:
            self._idle.append((connection, time.monotonic()))
            self._wake()

    def _wake(self) -> None:
        if self._waiters:
            waiter = self._waiters.pop(0)
            if not waiter.done():
                waiter.set_result(None)

    def _drop(self, connection: Any) -> None:
        self._discard(connection)
        # Where one is broken the others may be: a server that was restarted has closed them all.
        rest, self._idle = self._idle, []
        for each, _ in rest:
            self._discard(each)
        self._wake()

    def _discard(self, connection: Any) -> None:
        self._all.discard(connection)
        _abort(connection)

    def close(self) -> None:
        """Close all connections, at once."""
        self._closed = True
        for task in list(self._connecting):
            task.cancel()
        for connection in list(self._all):
            self._discard(connection)
        self._idle.clear()

    def abandon(self) -> None:
        """Let go of everything, in another loop or without any: this one is closed, or the parent's of a fork."""
        self._closed = True
        for connection in list(self._all):
            _cut(connection)
        self._all.clear()
        self._idle.clear()


def _abort(connection: Any) -> None:
    writer = connection._writer
    connection._writer = connection._reader = None
    if writer is not None:
        with contextlib.suppress(RuntimeError):  # its loop is closed
            writer.transport.abort()


def _cut(connection: Any) -> None:
    """Close the socket below, where the loop that would do so is gone."""
    writer = connection._writer
    connection._writer = connection._reader = None
    if writer is None:
        return
    transport = writer.transport
    raw = getattr(transport, "_sock", None)
    if raw is not None:
        # Else the transport warns, when it is collected, that nobody has closed it: nobody can any more.
        transport._sock = None
        raw.close()
    else:
        with contextlib.suppress(Exception):
            transport.abort()


def _ended(connection: Any) -> bool:
    reader = connection._reader
    return reader is None or reader.at_eof() or reader.exception() is not None or bool(reader._buffer)


class AsyncWire:
    """The connections of one process to one server, for functions that await.

    Args:
        url: of the server.
        timeout: seconds for which an operation waits for a connection and then for the answers, in all.
        connect_timeout: seconds that connecting may take; that happens aside, and no operation waits for it longer.
    """

    def __init__(self, url: str, timeout: float, connect_timeout: float) -> None:
        self._class, self._options, self.limit = connection_options(url, connect_timeout, asynchronous=True)
        self.timeout = timeout
        self.connect_timeout = connect_timeout
        # Guards the following.
        self._lock = fork_safe_lock()
        self._pools: dict[int, LoopPool] = {}  # by the loop's id

    def connection(self) -> Any:
        """Return a connection that is not connected yet."""
        return self._class(**self._options)

    async def call(self, commands: Sequence[Command]) -> list[Reply]:
        """Send commands in one go and return the answers; an error that the server answers is an answer.

        Raises:
            Exception: there was no answer in time: whatever the client library or the system raises.
        """
        loop = asyncio.get_running_loop()
        pool = self._pools.get(id(loop))
        if pool is None or pool.loop is not loop or pool._closed:
            pool = await self._new(loop)
        return await pool.call(commands)

    async def _new(self, loop: asyncio.AbstractEventLoop) -> LoopPool:
        pool = LoopPool(self, loop)
        with self._lock:
            gone = [each for each in self._pools.values() if each.loop.is_closed() or each._closed]
            self._pools = {ident: each for ident, each in self._pools.items() if each not in gone}
            self._pools[id(loop)] = pool
        for each in gone:
            each.abandon()
        await pool.prime()
        return pool

    async def aclose(self) -> None:
        """Close the connections of this loop; those of others are closed with their loops."""
        loop = asyncio.get_running_loop()
        with self._lock:
            pool = self._pools.pop(id(loop), None)
        if pool is not None:
            pool.close()
            await asyncio.sleep(0)

    def forget(self) -> None:
        """Let go of all pools: in a child of fork, or from outside of every loop."""
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
        return isinstance(client, redis.asyncio.Redis)

    async def call(self, commands: Sequence[Command]) -> list[Reply]:
        """Send commands in one go and return the answers; an error that the server answers is an answer."""
        pipeline = self._client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        return [refused(reply) for reply in await pipeline.execute(raise_on_error=False)]

    async def aclose(self) -> None:
        """Do nothing: whoever has made the client closes it."""

    def forget(self) -> None:
        """Do nothing, either."""
