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


ANOTHER = """
import sys
from memo import PickleFileStore, cache_aside
store = PickleFileStore(sys.argv[1], max_size=eval(sys.argv[2]), timeout=60)
loads = []
@cache_aside(store=store, namespace="shared", tags=("all", "t{x}"), ttl=None)
def f(x):
    loads.append(x)
    return f"{x} of another"
for line in sys.stdin:
    try:
        answer = eval(line)
    except Exception as error:
        answer = type(error).__name__
    print(repr(answer), flush=True)
"""


@pytest.fixture
def another(launch, path):
    """Another process on the same file: call it with an expression of `store`, `f` and `loads`."""

    def start(max_size=None):
        process = launch(ANOTHER, path, max_size)

        def ask(expression):
            process.stdin.write(f"{expression}\n")
            process.stdin.flush()
            return eval(process.stdout.readline())

        ask.process = process
        return ask

    return start
