"""The applications of the documentation, as their readers run them: in processes of their own, at a real server."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parent.parent.parent / "docs"
EXAMPLES = DOCS / "examples"
PAGE_OF = {"fastapi_app.py": "fastapi.md", "structured_logging.py": "logging.md"}
SAFETY = 60.0
"""Seconds after which a process that hangs is ended, so that its test fails."""


def code(page: str) -> list[str]:
    """The blocks of Python of a page."""
    return re.findall(r"^```python\n(.*?)^```$", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_a_page_shows_the_whole_example(name):
    assert (EXAMPLES / name).read_text(encoding="utf-8") in code(PAGE_OF[name])


# -- FastAPI -----------------------------------------------------------------------------------------------------------


class Application:
    """One server process with the application, which ends as a terminal or an orchestrator ends it."""

    def __init__(self, environment: dict[str, str]) -> None:
        # Its warnings are errors, and what it forgets to close is a warning.
        command = [sys.executable, "-W", "error", "-m", "uvicorn", "--port", "0", "--no-access-log"]
        command += ["--app-dir", str(EXAMPLES), "fastapi_app:app"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env={**os.environ, **environment}, **pipes)
        self.lines: list[str] = []
        self.safety = threading.Timer(SAFETY, self.process.kill)
        self.safety.start()
        self.url = ""
        self.up = threading.Event()  # or it has ended
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        for line in self.process.stderr:
            self.lines.append(line)
            if found := re.search(r"running on (http://\S+)", line):
                self.url = found[1]
                self.up.set()
        self.up.set()

    def running(self) -> Application:
        assert self.up.wait(SAFETY)
        assert self.url, "".join(self.lines)
        return self

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data=data, headers=headers, method=method)
        with urllib.request.urlopen(request, timeout=SAFETY) as answer:
            return json.load(answer)

    def counted(self) -> dict[str, Any]:
        return self.ask("GET", "/health")["cache"]["functions"]["fastapi_app.get_book"]

    def stop(self) -> str:
        """End it, and return what it has said on the standard error since it was up."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(SAFETY)
        self.reader.join(SAFETY)
        # uvicorn raises the signal again when all is closed.
        assert self.process.returncode in (0, -signal.SIGTERM), "".join(self.lines)
        return "".join(self.lines)

    def kill(self) -> None:
        self.safety.cancel()
        self.process.kill()
        self.process.wait()
        self.reader.join(SAFETY)
        self.process.stdout.close()
        self.process.stderr.close()


@pytest.fixture
def applications(tmp_path, redis_server):
    """Two processes with one database and one server of Redis."""
    environment = {"BOOKS_DB": str(tmp_path / "books.db"), "BOOKS_CACHE": f"{redis_server.url}?prefix=books:&timeout=5"}
    started = [Application(environment), Application(environment)]
    yield started
    for application in started:
        application.kill()


OLD, NEW, NEWEST = ({"title": "Dune", "price": price} for price in (20, 25, 30))


def test_processes_share_results_see_each_others_writes_and_do_without_redis(applications, redis_server):
    one, other = [application.running() for application in applications]
    with pytest.raises(urllib.error.HTTPError) as missing:
        one.ask("GET", "/books/7")
    missing.value.close()
    assert missing.value.code == 404

    assert one.ask("PUT", "/books/7", OLD) == {"saved": True, "seen": True}
    assert [one.ask("GET", "/books/7") for _ in range(2)] == [OLD, OLD]  # cold, then warm
    assert (one.counted()["loads"], one.counted()["hits"]) == (2, 1)
    assert other.ask("GET", "/books/7") == OLD
    assert (other.counted()["loads"], other.counted()["hits"]) == (0, 1)

    assert other.ask("PUT", "/books/7", NEW) == {"saved": True, "seen": True}
    assert one.ask("GET", "/books/7") == NEW
    assert one.counted()["loads"] == 3

    redis_server.kill()
    assert [each.ask("GET", "/books/7") for each in (one, other, one)] == [NEW, NEW, NEW]
    assert one.ask("PUT", "/books/7", NEWEST) == {"saved": True, "seen": False}
    assert [each.ask("GET", "/books/7") for each in (one, other)] == [NEWEST, NEWEST]
    assert one.counted()["errors"]["read"] >= 1

    redis_server.start()
    for each in applications:  # an invalidation is tried, however long the server was down
        assert each.ask("PUT", "/books/7", NEWEST) == {"saved": True, "seen": True}
    hits = other.counted()["hits"]
    assert [each.ask("GET", "/books/7") for each in (one, other)] == [NEWEST, NEWEST]
    assert other.counted()["hits"] == hits + 1

    for each in applications:
        said = each.stop()
        assert "Application shutdown complete" in said
        others = [line for line in said.splitlines() if not line.startswith("INFO:")]
        # That Redis was down, once for each kind of failure; and no warning.
        assert all(
            re.fullmatch(r"fastapi_app\.get_book: (read|take|fill) \(StoreError\); .*", line) for line in others
        ), said
        assert len(others) == len(set(others)) <= 3


def test_that_no_redis_is_there_at_the_start_is_no_matter(tmp_path, closed_port):
    url = f"redis://:s3cret-canary@127.0.0.1:{closed_port}/0"
    application = Application({"BOOKS_DB": str(tmp_path / "books.db"), "BOOKS_CACHE": url})
    try:
        assert application.running().ask("PUT", "/books/7", OLD) == {"saved": True, "seen": False}
        assert application.ask("GET", "/books/7") == OLD
        said = application.stop()
    finally:
        application.kill()
    others = [line for line in said.splitlines() if not line.startswith("INFO:")]
    assert others
    assert all(line.startswith("fastapi_app.get_book: ") for line in others), said
    assert "s3cret-canary" not in said


def test_the_test_that_the_page_shows_passes(tmp_path, monkeypatch):
    namespace: dict[str, Any] = {"__name__": "fastapi_app"}
    for block in code("fastapi.md"):
        exec(block, namespace)
    asyncio.run(namespace["test_a_new_price_is_seen_at_once"](tmp_path, monkeypatch))


# -- structured logging ------------------------------------------------------------------------------------------------

SHOP = """
from structured_logging import log_as_json, log_statistics
from memo import cache_aside

log_as_json()

@cache_aside(namespace="shop.price")
def price(book):
    return {"canary-value": 20}

for _ in range(3):
    price("canary-argument")
log_statistics()
"""


def lines_of(tmp_path: Path, script: str, url: str) -> list[dict[str, Any]]:
    (tmp_path / "shop.py").write_text(script, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": f"{EXAMPLES}{os.pathsep}{tmp_path}", "MEMO_STORE": url}
    command = [sys.executable, "-W", "error", "-c", "import shop"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SAFETY)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert "canary" not in done.stdout
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_log_lines_and_statistics_are_json_without_arguments_values_and_passwords(tmp_path, closed_port):
    lines = lines_of(tmp_path, SHOP, f"redis://:canary-password@127.0.0.1:{closed_port}/0")
    assert {line["logger"] for line in lines} == {"memo", "memo.statistics"}
    (statistics,) = [line for line in lines if line["message"] == "cache statistics"]
    assert statistics["level"] == "INFO"
    assert (statistics["function"], statistics["calls"], statistics["loads"]) == ("shop.price", 3, 3)
    assert statistics["errors"]["read"] == 3
    (sample,) = re.findall(r"^```text\n(.*?)^```$", (DOCS / "logging.md").read_text(encoding="utf-8"), re.M | re.S)
    shown = [json.loads(line) for line in sample.splitlines()]
    assert [list(line) for line in shown] == [list(line) for line in lines]
    varying = {"time", "load_seconds"}
    plain = [[{k: v for k, v in line.items() if k not in varying} for line in each] for each in (shown, lines)]
    assert plain[0] == plain[1]


def test_where_all_is_well_the_statistics_are_all_that_is_logged(tmp_path, redis_server):
    (line,) = lines_of(tmp_path, SHOP, f"{redis_server.url}?timeout=5")
    assert (line["message"], line["calls"], line["loads"], line["errors"]) == ("cache statistics", 3, 1, {})


def test_an_error_that_the_application_logs_is_one_line_too(tmp_path):
    script = """
import logging
from structured_logging import log_as_json
log_as_json()
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger("shop").exception("%s failed", "it", extra={"fields": {"order": 7}})
"""
    (line,) = lines_of(tmp_path, script, "memory://")
    assert (line["message"], line["level"], line["order"]) == ("it failed", "ERROR", 7)
    assert line["error"].endswith("ZeroDivisionError: division by zero")
