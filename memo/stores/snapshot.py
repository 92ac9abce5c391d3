"""A memory store's contents in one pickle file, written whole or not at all; this module holds no lock.

The file is a header line, a digest and one pickle: damage to a pickle may make another valid one of it. Times are those
of the wall clock, the only ones that mean anything in another process. Unpickling runs code that the file names: load
only files that no one else could have written.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..errors import SnapshotError
from ..keys import Shape

__all__ = ["COUNTS", "Row", "Snapshot", "framed", "read", "write"]

COUNTS: Final = ("hits", "misses", "sets", "deletes", "evictions", "expirations")
"""The statistics that are saved."""

_MAGIC: Final = b"memo snapshot 1\n"


@dataclass(frozen=True)
class Row:
    """One entry: whose it is (None: a plain key), its key as the table has it, and when it expires by the wall.

    With windows, the seconds from when it is due to its end, and from there until it is stale and kept no more.
    """

    owner: str | None
    key: Any
    value: Any
    expires: float | None
    tags: tuple[str, ...]
    windows: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Snapshot:
    """What is saved: rows from the least to the most recently used one, the functions' key layouts, and statistics."""

    rows: list[Row]
    shapes: dict[str, tuple[Shape, bool]]  # by label, and whether the keys are what `key=` made
    stats: dict[str, int]


def framed(data: bytes) -> bytes:
    """Return a file's content for a pickle. The digest finds damage; it does not keep out who can write the file."""
    return _MAGIC + hashlib.blake2b(data, digest_size=32).digest() + data


def write(path: Any, snapshot: Snapshot) -> None:
    """Write a snapshot to `path`, readable by its owner only, in one step for whoever reads.

    Raises:
        SnapshotError: something could not be pickled or written; what was at `path` is still there.
    """
    target = Path(path)
    temporary: str | None = None
    try:
        content = framed(
            pickle.dumps(
                (
                    [(row.owner, row.key, row.value, row.expires, row.tags, row.windows) for row in snapshot.rows],
                    {label: (shape.parts, explicit) for label, (shape, explicit) in snapshot.shapes.items()},
                    snapshot.stats,
                ),
                protocol=4,
            )
        )
        # mkstemp creates with 0600 and O_EXCL, in the target's own folder so that the rename stays on one file system.
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        temporary = None
        _sync_folder(target.parent)
    except Exception as error:
        raise SnapshotError(
            f"could not save to {str(target)!r}: {type(error).__name__}: {error}; the file is as it was"
        ) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def _sync_folder(folder: Path) -> None:
    # Without this a crash of the machine may bring the old name back; where folders cannot be opened, it may.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read(path: Any) -> Snapshot:
    """Read a snapshot.

    Raises:
        SnapshotError: the file is missing, foreign, damaged or names what cannot be imported.
    """
    try:
        content = Path(path).read_bytes()
        if not content.startswith(_MAGIC):
            raise ValueError("it does not begin as a file saved by memo does")
        data = content[len(_MAGIC) + 32 :]
        if framed(data) != content:
            raise ValueError("it is damaged")
        rows, shapes, stats = pickle.loads(data)  # noqa: S301 - documented: load only your own files
        found = Snapshot(
            [Row(*row) for row in rows],
            {label: (Shape(label, parts), bool(explicit)) for label, (parts, explicit) in shapes.items()},
            {name: int(stats[name]) for name in COUNTS},
        )
        for shape, _ in found.shapes.values():
            if type(shape.parts) is not tuple:
                raise ValueError(f"it has the layout {shape.parts!r}")
        for row in found.rows:
            _check(row, None if row.owner is None else found.shapes[row.owner][0])
        return found
    except Exception as error:
        raise SnapshotError(
            f"could not load from {str(path)!r}: {type(error).__name__}: {error}; the store is as it was"
        ) from error


def _check(row: Row, shape: Shape | None) -> None:
    """Raise something if a row cannot be an entry, before anything in a store is touched."""
    if not isinstance(row.key, str) and (shape is None or not shape.fits(row.key)):
        raise ValueError(f"it has the key {row.key!r}")
    hash(row.key)
    if type(row.tags) is not tuple or not all(isinstance(tag, str) for tag in row.tags):
        raise ValueError(f"it has the tags {row.tags!r}")
    if row.expires is not None and type(row.expires) not in (int, float):
        raise ValueError(f"it has the time {row.expires!r}")
    if row.windows is not None and (
        row.expires is None or [type(each) for each in row.windows] != [float] * 3 or not min(row.windows) >= 0
    ):
        raise ValueError(f"it has the windows {row.windows!r}")
