"""What memo raises: one base and a few leaves; this module never decides when to raise them.

::

    MemoError
    ├── OptionError (ValueError, TypeError)   an option or argument given to memo is out of range
    ├── UnkeyableError (TypeError)            a call's argument cannot be told apart safely
    ├── RecursiveLoadError (RecursionError)   a load waits, directly or not, for itself
    └── StoreError                            a store could not do what it was asked
        ├── SerializationError            a value cannot be written such that it comes back the same, or bytes be read
        ├── SnapshotError                     a save or a load of a store's contents failed
        └── InvalidationError                 a write succeeded, and what it made untrue could not be forgotten
"""

from __future__ import annotations

__all__ = [
    "InvalidationError",
    "MemoError",
    "OptionError",
    "RecursiveLoadError",
    "SerializationError",
    "SnapshotError",
    "StoreError",
    "UnkeyableError",
]


class MemoError(Exception):
    """The base of every error that memo itself raises."""


class OptionError(MemoError, ValueError, TypeError):
    """An option or an argument given to memo is not allowed: the message says what was given and what is allowed.

    It is both a ValueError and a TypeError, so that neither a caller who thinks of ``ttl=-1`` as a bad value nor
    one who thinks of ``ttl="60"`` as a bad type is surprised.
    """


class UnkeyableError(MemoError, TypeError):
    """A call has an argument from which no safe key can be made: the message names it and the ways out."""


class RecursiveLoadError(MemoError, RecursionError):
    """A load would have to wait for itself: within a task, across tasks or across threads."""


class StoreError(MemoError):
    """A store could not do what it was asked to do."""


class SerializationError(StoreError):
    """A serializer cannot write a value such that it comes back the same, or cannot read the bytes that it was given.

    The message says where in the value the trouble is, by names and types, and what to do; it shows no value.
    """


class SnapshotError(StoreError):
    """Saving or loading a store's contents failed; the file and the store are as they were before."""


class InvalidationError(StoreError):
    """A function decorated with `invalidates` has written, but not everything could be invalidated.

    Attributes:
        result: what the function returned.
        errors: what went wrong, one error for each invalidation that failed.
    """

    def __init__(self, message: str, result: object = None, errors: tuple[Exception, ...] = ()) -> None:
        super().__init__(message)
        self.result = result
        self.errors = errors
