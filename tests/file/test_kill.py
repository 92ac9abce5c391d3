"""A process that is killed, at any moment and at each of its system calls, loses at most what it was just writing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from siblings import module

NIGHTLY = os.environ.get("MEMO_PROFILE") == "nightly"
PROGRAM = Path(__file__).with_name("killing.py")

killing = module("file/killing.py")


@pytest.fixture
def folder():
    # In memory where there is some: it is not the disk that is tried here.
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as name:
        yield name


def run(*arguments: str, timeout: float) -> dict[str, int]:
    """Run the program without what measures coverage: it is killed again and again."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *arguments], capture_output=True, text=True, timeout=timeout, env=environment
    )
    assert done.returncode == 0, f"{arguments}: {done.stderr[-3000:]}"
    return json.loads(done.stdout)


def test_a_kill_at_any_moment_loses_nothing_that_was_acknowledged(folder):
    kills = 20_000 if NIGHTLY else 500
    seed = time.time_ns() if NIGHTLY else 1
    print(f"seed {seed}")
    counts = run("loop", folder, str(kills), str(seed), timeout=3600 if NIGHTLY else 240)
    print(counts)
    assert counts["kills"] >= kills
    # It was tried what is to be shown: some were killed after they had written and before they said so.
    assert min(counts[each] for each in ("done", "not done", "acknowledged", "compactions", "beginnings")) > 0
    assert counts["torn"] or not NIGHTLY


@pytest.mark.parametrize("scenario", killing.SCENARIOS)
def test_a_kill_at_each_system_call_leaves_an_operation_done_or_not_done(folder, scenario):
    counts = run("points", folder, scenario, timeout=240)
    assert counts["kills"] > 20
    _, before, _, done = killing.SCENARIOS[scenario]
    assert counts["outcomes"] == (1 if before == done else 2)
