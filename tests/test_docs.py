"""What the documentation shows is what happens: its code runs, its output is compared, its tables are complete."""

from __future__ import annotations

import contextlib
import dataclasses
import doctest
import importlib.util
import inspect
import io
import re
import socket
import subprocess
import sys
import types
from pathlib import Path
from typing import NamedTuple

import click
import pytest

import memo
import memo.testing
from memo import cli, decorator, urls
from memo.stats import FunctionStats, StoreStats
from memo.stores import Store
from memo.stores.file import FileStats
from memo.stores.inspection import FileContents

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
LANGUAGES = {"python", "text", "bash"}

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    language: str
    source: str
    line: int
    output: str | None  # the text block right below


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = list(_FENCE.finditer(text))
    made = []
    for match, following in zip(found, [*found[1:], None][: len(found)], strict=True):
        shown = following is not None and following[1] == "text" and not text[match.end() : following.start()].strip()
        line = text.count("\n", 0, match.start()) + 1
        made.append(Block(match[1], match[2], line, following[2] if following and shown else None))
    return made


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Starts the tests' own redis-server when it is called for the first time."""
    spec = importlib.util.spec_from_file_location("redis_servers", ROOT / "tests" / "redis" / "conftest.py")
    started = []

    def start():
        if not started:
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            started.append(module.RedisServer(tmp_path_factory.mktemp("redis")))
        return started[0]

    yield start
    for each in started:
        each.stop()


@pytest.fixture
def _redis_of_the_pages(server, monkeypatch):
    """What a page reaches at localhost:6379 is a server of the tests' own, empty at first."""
    look_up, looked_up = socket.getaddrinfo, []

    def redirected(host, port, *args, **kwargs):
        if port != 6379:
            return look_up(host, port, *args, **kwargs)
        if not looked_up:
            looked_up.append(server())
            server().flush()
        return look_up("127.0.0.1", server().port, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", redirected)


@pytest.mark.usefixtures("_redis_of_the_pages")
@pytest.mark.parametrize("page", PAGES, ids=named)
def test_the_code_runs_and_prints_what_is_shown_below_it(page, monkeypatch):
    """In one namespace per page, which is `__main__` as it is for a reader who pastes the blocks."""
    module = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", module)
    keys = sys.modules["memo.keys.encode"]
    monkeypatch.setattr(keys, "_taught", dict(keys._taught))  # what a page teaches, no other test knows
    for block in blocks(page):
        if block.language != "python":
            continue
        # The empty lines make a traceback point to the page's own line.
        code = compile("\n" * block.line + block.source, str(page), "exec", dont_inherit=True)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, vars(module))
        expected = block.output or ""
        assert doctest.OutputChecker().check_output(expected, printed.getvalue(), doctest.ELLIPSIS), (
            f"{named(page)}, line {block.line} prints\n{printed.getvalue()}and shows\n{expected}"
        )
        file = re.match(r"# (\w+)\.py\n", block.source)
        if file:  # blocks below may import it
            monkeypatch.setitem(sys.modules, file[1], module)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_block_says_what_language_it_is_in(page):
    assert {block.language for block in blocks(page)} <= LANGUAGES
    fences = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("```")]
    assert len(fences) == 2 * len(blocks(page))


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", _FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_link_inside_the_project_leads_somewhere(page):
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        goal = (page.parent / path).resolve() if path else page
        assert goal.exists(), f"{named(page)} links to {target}"
        assert not anchor or anchor in anchors(goal), f"{named(page)} links to {target}"


def test_the_index_leads_to_every_page():
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "index.md" or f"]({page.name}" in index


def test_the_test_file_of_the_tutorial_passes(tmp_path):
    """As a reader runs it: in a folder of its own, with memo's plugin."""
    for block in blocks(ROOT / "docs" / "tutorial.md"):
        file = re.match(r"# (\w+\.py)\n", block.source)
        if file:
            (tmp_path / file[1]).write_text(block.source, encoding="utf-8")
    # Under its module's name, so that this does not depend on the entry points of an installation.
    command = [sys.executable, "-m", "pytest", "-p", "no:memo", "-p", "memo.testing.plugin", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert "2 passed" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0


# The tables of equivalents.

LIBRARIES = ["functools.lru_cache", "cachetools", "dogpile.cache", "cashews", "diskcache", "joblib.Memory", "shelve"]
QUESTIONS = ["decorator", "ttl", "key", "invalidate one", "invalidate all", "method", "async", "stampede", "None"]


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_newcomer_from_another_library_finds_each_answer(library):
    text = (ROOT / "docs" / "migrate.md").read_text(encoding="utf-8")
    section = text.partition(f"\n## From {library}\n")[2].partition("\n## ")[0]
    rows = {row[1]: row[2:-1] for line in section.splitlines() if len(row := re.split(r" ?\| ?", line)) > 3}
    for question in [*QUESTIONS, "statistics"]:
        assert all(rows[question]), question
        assert len(rows[question]) == 2, question
    assert "**What else changes.**" in section
    assert "```python" in section


# The README.


def commands() -> list[str]:
    return [block.source.strip() for block in blocks(ROOT / "README.md") if block.language == "bash"]


def test_the_readme_gives_a_newcomer_two_commands_of_one_line():
    run, test = commands()
    assert run.endswith("&& memo demo")
    assert test.endswith("python -m pytest")
    assert "\n" not in run + test


def test_the_continuous_integration_calls_the_test_command_of_the_readme():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert commands()[1] in [line.strip() for line in script]


def test_the_first_screen_of_the_readme_is_a_sentence_four_bullets_an_example_and_what_memo_is_not_for():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    head, _, rest = text.partition("```python")
    assert len(re.findall(r"^- \*\*", head, re.MULTILINE)) == 4
    assert rest.index("not for") < rest.index("\n## ")


def test_the_readme_shows_the_table_that_the_demo_prints():
    shown = [block.source for block in blocks(ROOT / "README.md") if block.language == "text"][-1]
    result = {
        "memo": "",
        "python": "",
        "passes": [
            {"pass": "cold", "files": 734, "seconds": 3.47, "hits": 0, "misses": 734, "hit_ratio": 0.0}
            | {"seconds_saved": 0.0, "entries": 734},
            {"pass": "warm", "files": 734, "seconds": 0.0086, "hits": 734, "misses": 0, "hit_ratio": 1.0}
            | {"seconds_saved": 3.36, "entries": 734},
            {"pass": "restart", "files": 734, "seconds": 0.0197, "hits": 734, "misses": 0, "hit_ratio": 1.0}
            | {"seconds_saved": 3.36, "entries": 734},
        ],
        "file_size": 204_900,
        "found": {"lines": 0, "functions": 0, "classes": 0, "hardest": {"function": "", "file": "", "complexity": 0}},
        "edit": {"file": "", "functions_before": 0, "functions_after_edit": 0, "invalidated": True}
        | {"functions_after_invalidation": 0},
        "stampede": {"threads": 0, "loads": 0, "distinct_answers": 0},
        "stale": {"loaded": 0, "load_seconds": 0, "served_when_stale": 0, "serve_seconds": 0, "refreshes": 0}
        | {"served_next": 0, "next_seconds": 0},
    }
    printed = io.StringIO()
    cli.present(result, cli.console(printed))
    assert shown.splitlines() == printed.getvalue().splitlines()[2:6]


# The reference.

REFERENCE = ROOT / "docs" / "reference.md"
STATISTICS = [field.name for cls in (FunctionStats, StoreStats) for field in dataclasses.fields(cls)]


def mentioned(name: str) -> bool:
    """Whether the reference has the name at the beginning of a table row or in a title."""
    text = REFERENCE.read_text(encoding="utf-8") if REFERENCE.exists() else ""
    return bool(re.search(rf"^(\| |#+ ).*`(a?\w+\.)*{re.escape(name)}\b.*$", text, re.MULTILINE))


def methods(cls: type) -> list[str]:
    return [name for name in dir(cls) if not name.startswith("_")]


@pytest.mark.parametrize("name", [*memo.__all__, *memo.testing.__all__])
def test_the_reference_has_every_public_name(name):
    assert mentioned(name)


@pytest.mark.parametrize("name", [p for p in inspect.signature(memo.cache_aside).parameters if p != "function"])
def test_the_reference_has_every_option_of_the_decorator(name):
    assert mentioned(name)


@pytest.mark.parametrize("name", methods(decorator._Helpers))
def test_the_reference_has_every_helper(name):
    assert mentioned(name)


@pytest.mark.parametrize("name", [n for n in methods(memo.MemoryStore) if not (n[0] == "a" and n[1:] in dir(Store))])
def test_the_reference_has_every_method_of_a_store(name):
    assert mentioned(name)


@pytest.mark.parametrize("name", sorted({*methods(FunctionStats), *methods(StoreStats), *STATISTICS}))
def test_the_reference_has_every_statistic(name):
    assert mentioned(name)


@pytest.mark.parametrize("name", inspect.signature(memo.MemoryStore).parameters)
def test_the_reference_has_every_parameter_of_a_memory_store(name):
    assert mentioned(name)


@pytest.mark.parametrize("name", inspect.signature(memo.PickleFileStore).parameters)
def test_the_reference_has_every_parameter_of_a_file_store(name):
    section = REFERENCE.read_text(encoding="utf-8").partition("\n### `PickleFileStore`\n")[2].partition("\n### ")[0]
    assert f"\n| `{name}` | " in section


@pytest.mark.parametrize(
    "name", [n for n in methods(memo.PickleFileStore) if not (n[0] == "a" and n[1:] in dir(Store))]
)
def test_the_reference_has_every_method_of_a_file_store(name):
    assert mentioned(name)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(FileStats)])
def test_the_reference_has_every_statistic_of_a_file_store(name):
    assert mentioned(name)


@pytest.mark.parametrize("name", list(urls._OPTIONS["file"]))
def test_the_reference_has_every_option_of_a_file_url(name):
    row = re.search(r"^\| `file:///.*$", REFERENCE.read_text(encoding="utf-8"), re.MULTILINE)
    assert f"`{name}`" in row[0]


@pytest.mark.parametrize("command", list(cli._memo.commands))
def test_the_reference_has_every_command_and_its_options(command):
    section = REFERENCE.read_text(encoding="utf-8").partition(f"\n### `memo {command}")[2].partition("\n### ")[0]
    for parameter in cli._memo.commands[command].params:
        for name in parameter.opts if isinstance(parameter, click.Option) else ():
            assert f"\n| `{name}" in section, name
    fields = {field.name for field in dataclasses.fields(FileContents)} if command == "inspect" else set()
    for name in fields | ({"key", "function", "tags", "age", "left", "size"} if fields else set()) - {"entries"}:
        assert f"`{name}`" in section, name


def test_the_reference_says_the_defaults_that_the_decorator_has():
    text = REFERENCE.read_text(encoding="utf-8")
    for name, parameter in inspect.signature(memo.cache_aside).parameters.items():
        if name != "function":
            row = re.search(rf"^\| `{name}` \|.*\| (.+) \|$", text, re.MULTILINE)
            assert row is not None, name
            assert row[1] == f"`{parameter.default!r}`".replace("'", '"'), name
