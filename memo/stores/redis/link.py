"""The way to one Redis server: connections, the breaker before them, and scripts that it may not know yet."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from typing import Any, Final

from ...errors import OptionError, StoreError
from ...stats import logger
from .breaker import Breaker
from .commands import Command, NoConnection, Refusal, Reply, Script
from .owed import Owed, first
from .protocol import CLAIM, EXTEND, FILL, RELEASE, RENEW

__all__ = ["Link"]

# What a server answers of a key at which nothing stands: all that who removes one asks.
_NOTHING: Final[dict[Any, Reply]] = {"GETRANGE": b"", "PTTL": -2, "UNLINK": 0}

_SCRIPTS: Final[dict[Any, Script]] = {each.digest: each for each in (FILL, RELEASE, CLAIM, RENEW, EXTEND)}


class Link:
    """Sends commands to a server and returns its answers, or says with one error that there are none.

    Args:
        server: a URL, a client of redis-py, one of redis.asyncio, or a tuple of both.
        timeout: seconds that an operation may take, however many round trips it makes.
        connect_timeout: seconds that connecting may take.
        queue: removals that get no answer wait, and are tried again.

    Raises:
        OptionError: that is no server, or redis-py is not installed.
    """

    def __init__(self, server: Any, timeout: float, connect_timeout: float, queue: bool = False) -> None:
        self._wire, self._awire = _wires(server, connect_timeout)
        self._timeout = timeout
        self.breaker = Breaker()
        self.owed = Owed(self.settle) if queue else None

    def deadline(self, current: float) -> float:
        """Return when an operation has to be over, of the monotonic clock.

        Args:
            current: its deadline; 0: it begins now.

        Raises:
            StoreError: its time is over. That is said before anything is sent: no connection is dropped for it.
        """
        now = time.monotonic()
        if not current:
            return now + self._timeout
        if now >= current:
            raise StoreError("the Redis server has not answered in time: there was none left for another question")
        return current

    def call(self, commands: list[Command], loud: bool, deadline: float) -> list[Reply]:
        """Return the answers to commands that go out together.

        Args:
            commands: what is asked.
            loud: ask even a server that is left alone since it does not answer.
            deadline: of the operation that asks.

        Raises:
            StoreError: there is no answer.
        """
        if self._wire is None:
            raise StoreError("this store has a client of redis.asyncio only: give it a blocking one too, as a tuple")
        owed, keys = ((), ()) if self.owed is None else (self.owed.waiting(), _removed(commands))
        sent = first(owed, commands) if owed else commands
        try:
            self._ask(loud and not keys)
            replies: list[Reply] = self._wire.call(sent, deadline)
            again = _unknown(sent, replies)
            if again:
                for index, reply in zip(again, self._wire.call(list(again.values()), deadline), strict=True):
                    replies[index] = reply
        except Exception as error:  # noqa: BLE001 - it is told apart below, without its text
            return self._queued(commands, keys, self._no_answer(error))
        self.breaker.succeeded()
        return self._paid(owed, replies) if owed else replies

    async def acall(self, commands: list[Command], loud: bool, deadline: float) -> list[Reply]:
        """Do what `call` does, awaited."""
        if self._awire is None:
            return await asyncio.to_thread(self.call, commands, loud, deadline)
        owed, keys = ((), ()) if self.owed is None else (self.owed.waiting(), _removed(commands))
        sent = first(owed, commands) if owed else commands
        try:
            self._ask(loud and not keys)
            replies: list[Reply] = await self._awire.call(sent, deadline)
            again = _unknown(sent, replies)
            if again:
                for index, reply in zip(again, await self._awire.call(list(again.values()), deadline), strict=True):
                    replies[index] = reply
        except Exception as error:  # noqa: BLE001 - the same
            return self._queued(commands, keys, self._no_answer(error))
        self.breaker.succeeded()
        return self._paid(owed, replies) if owed else replies

    def _queued(self, commands: Sequence[Command], keys: Sequence[bytes], error: StoreError) -> list[Reply]:
        """Let keys wait that were to be removed, and answer as if nothing had stood there; else raise the error."""
        if not keys or self.owed is None:
            raise error from None
        if not len(self.owed):
            logger.warning("Redis: an invalidation has got no answer (%s): it waits, and is tried again", error)
        if not self.owed.add(keys):
            raise StoreError(f"{error}, and {len(self.owed)} keys wait for it already to be removed") from None
        return [_NOTHING[command[0]] for command in commands]

    def _paid(self, owed: Sequence[tuple[bytes, object]], replies: list[Reply]) -> list[Reply]:
        """Return the answers to what was asked after the removal of keys that had to wait."""
        assert self.owed is not None
        done = [each for each, reply in zip(owed, replies, strict=False) if not isinstance(reply, Refusal)]
        self.owed.paid(done)
        if len(done) < len(owed):
            # What was read after that may be what is to be removed.
            raise StoreError("the Redis server refuses to remove what was invalidated while it did not answer")
        return replies[len(owed) :]

    def settle(self) -> None:
        """Try to remove what waits for that; what fails waits on."""
        if self.owed is not None and len(self.owed) and self._wire is not None:
            with contextlib.suppress(StoreError):
                self.call([], False, self.deadline(0.0))

    def _ask(self, loud: bool) -> None:
        if not loud and not self.breaker.allows():
            raise StoreError("the Redis server does not answer, and is left alone for a while")

    def _no_answer(self, error: Exception) -> StoreError:
        """Return what callers get; what the error itself says may hold a password, a key or a value."""
        if isinstance(error, StoreError):
            return error  # nobody was asked, which says nothing of the server
        self.breaker.failed()
        kind = error.kind if isinstance(error, NoConnection) else type(error).__name__
        return StoreError(f"the Redis server has not answered ({kind})")

    def close(self) -> None:
        """Close what nobody uses, and have event loops close what is theirs."""
        self.settle()
        if self._wire is not None:
            self._wire.close()
        if self._awire is not None:
            self._awire.close()

    async def aclose(self) -> None:
        """Close what nobody uses, and what belongs to this event loop."""
        if self.owed is not None and len(self.owed):
            with contextlib.suppress(StoreError):
                await self.acall([], False, self.deadline(0.0))
        if self._wire is not None:
            self._wire.close()
        if self._awire is not None:
            await self._awire.aclose()

    def forget(self) -> None:
        """Let go of everything, in a child of fork; the parent goes on with the connections."""
        for wire in (self._wire, self._awire):
            if wire is not None:
                wire.forget()
        if self.owed is not None:
            self.owed.forget_thread()


def _wires(server: Any, connect_timeout: float) -> tuple[Any, Any]:
    """Return what blocks and what awaits, to one server; None: there is no client for that."""
    try:
        from .awire import AsyncClientWire, AsyncWire  # the extra is needed only by who has such a store
        from .wire import ClientWire, Wire
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "redis":
            raise
        raise OptionError('RedisStore needs redis-py: python -m pip install "memo-cache[redis]"') from None
    if isinstance(server, str):
        return Wire(server, connect_timeout), AsyncWire(server, connect_timeout)
    blocking = awaiting = None
    for client in server if isinstance(server, tuple) else (server,):
        if AsyncClientWire.takes(client):
            awaiting = AsyncClientWire(client)
        elif ClientWire.takes(client):
            blocking = ClientWire(client)
        else:
            # Not the thing itself: its repr may show a password.
            raise OptionError(
                f"a {type(client).__name__} is no Redis server: allowed are a URL such as redis://localhost:6379/0, a "
                f"redis.Redis, a redis.asyncio.Redis and a tuple of both"
            )
    if blocking is None and awaiting is None:
        raise OptionError("an empty tuple is no Redis server: allowed are a URL, a client, and a tuple of two clients")
    return blocking, awaiting


def _removed(commands: Sequence[Command]) -> list[bytes]:
    """Return the keys that commands remove."""
    return [command[1] for command in commands if command[0] == "UNLINK"]


def _unknown(commands: Sequence[Command], replies: Sequence[Reply]) -> dict[int, Command]:
    """Return the scripts that the server does not know, in full, by their place."""
    refused = [index for index, reply in enumerate(replies) if type(reply) is Refusal and reply.kind == "NOSCRIPT"]
    return {index: _SCRIPTS[commands[index][1]].in_full(commands[index]) for index in refused}
