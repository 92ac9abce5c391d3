"""Files for the stores that keep one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import memo
from memo import PickleFileStore


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache.memo"


@pytest.fixture
def make(path, clock):
    """Makes stores on one file and one clock, and closes them."""
    made = []

    def make(where=path, **options):
        made.append(PickleFileStore(where, **{"clock": clock, **options}))
        return made[-1]

    yield make
    for store in made:
        store.close()


@pytest.fixture
def store(make):
    return make()


@pytest.fixture
def launch():
    """Starts other interpreters, which run a script with arguments; the test talks to them through pipes."""
    started = []

    def launch(script, *args):
        environment = {**os.environ, "PYTHONPATH": str(Path(memo.__file__).parents[1])}
        command = [sys.executable, "-W", "error", "-c", script, *map(str, args)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started.append(subprocess.Popen(command, env=environment, **pipes))
        return started[-1]

    yield launch
    for process in started:
        process.kill()
        process.communicate()
