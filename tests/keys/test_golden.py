"""Keys of every release are read back for ever: these encodings never change, in no process and for no hash seed."""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

from memo.keys.encode import encode

GOLDEN = json.loads(pathlib.Path(__file__).with_name("golden.json").read_text(encoding="ascii"))
if importlib.util.find_spec("numpy") is None:
    del GOLDEN["numpy"]
VECTORS = {expression: text for group in GOLDEN.values() for expression, text in group.items()}

STDLIB = (
    "collections.abc datetime decimal fractions functools http ipaddress json math pathlib pstats re types typing "
    "urllib.parse uuid zoneinfo"
)
MODULES = [*STDLIB.split(), *(name for name in ("numpy",) if name in GOLDEN)]

SEEDS = range(50 if os.environ.get("MEMO_PROFILE") == "nightly" else 5)

# What each process runs: it evaluates all expressions, with its own hash seed, and prints their encodings.
PROGRAM = """
import json, sys
from memo.keys.encode import encode
modules, expressions = json.load(sys.stdin)
names = {name.partition(".")[0]: __import__(name) for name in modules}
json.dump([encode(eval(expression, names)) for expression in expressions], sys.stdout)
"""


@pytest.mark.parametrize("expression", VECTORS)
def test_encodings_never_change(expression):
    names = {name.partition(".")[0]: __import__(name) for name in MODULES}
    assert encode(eval(expression, names)) == VECTORS[expression]


def test_there_are_enough_of_them():
    assert len(VECTORS) >= 80
    assert len(set(VECTORS.values())) == len(VECTORS)


def test_encodings_are_the_same_in_every_process():
    """The order of sets and of what hashes differ from seed to seed; keys do not."""
    asked = json.dumps([MODULES, list(VECTORS)])
    running = []
    for seed in SEEDS:
        environment = {**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONPATH": os.pathsep.join(sys.path)}
        running.append(
            subprocess.Popen(
                [sys.executable, "-c", PROGRAM],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
    answers = [process.communicate(asked)[0] for process in running]
    for process, answer in zip(running, answers, strict=True):
        assert process.returncode == 0
        assert dict(zip(VECTORS, json.loads(answer), strict=True)) == VECTORS
