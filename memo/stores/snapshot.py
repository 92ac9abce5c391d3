"""A memory store's contents in one pickle file, written whole or not at all; this module holds no lock.

The file is a header line and one pickle. Times are those of the wall clock, the only ones that mean anything in another
process. Unpickling runs code that the file names: load only files that no one else could have written.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..errors import SnapshotError
from ..keys import Shape

__all__ = ["COUNTS", "Row", "Snapshot", "read", "write"]

COUNTS: Final = ("hits", "misses", "sets", "deletes", "evictions", "expirations")
"""The statistics that are saved."""

_MAGIC: Final = b"memo snapshot 1\n"


@dataclass(frozen=True)
class Row:
    """One entry: whose it is (None: a plain key), its key as the table has it, and when it expires by the wall."""

    owner: str | None
    key: Any
    value: Any
    expires: float | None
    tags: tuple[str, ...]


@dataclass(frozen=True)
class Snapshot:
    """What is saved: rows from the least to the most recently used one, the functions' key layouts, and statistics."""

    rows: list[Row]
    shapes: dict[str, tuple[Shape, bool]]  # by label, and whether the keys are what `key=` made
    stats: dict[str, int]


def write(path: Any, snapshot: Snapshot) -> None:
    """Write a snapshot to `path`, readable by its owner only, in one step for whoever reads.

    Raises:
        SnapshotError: something could not be pickled or written; what was at `path` is still there.
    """
    target = Path(path)
    temporary: str | None = None
    try:
        content = _MAGIC + pickle.dumps(
            (
                [(row.owner, row.key, row.value, row.expires, row.tags) for row in snapshot.rows],
                {label: (shape.parts, explicit) for label, (shape, explicit) in snapshot.shapes.items()},
                snapshot.stats,
            ),
            protocol=4,
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
        rows, shapes, stats = pickle.loads(content[len(_MAGIC) :])  # noqa: S301 - documented: load only your own files
        found = Snapshot(
            [Row(*row) for row in rows],
            {label: (Shape(label, tuple(parts)), bool(explicit)) for label, (parts, explicit) in shapes.items()},
            {name: int(stats[name]) for name in COUNTS},
        )
        for row in found.rows:
            hash(row.key)
            if row.owner is not None and row.owner not in found.shapes:
                raise ValueError(f"it has an entry of {row.owner!r} and does not say what its keys are like")
            if row.expires is not None:
                float(row.expires)
        return found
    except Exception as error:
        raise SnapshotError(
            f"could not load from {str(path)!r}: {type(error).__name__}: {error}; the store is as it was"
        ) from error
