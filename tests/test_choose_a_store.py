"""The page that compares stores says of each what the code, and the pages with measured figures, say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from memo import MemoryStore, NullStore, PickleFileStore, RedisStore
from memo.config import resolve_store
from memo.urls import check_url

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "choose-a-store.md").read_text(encoding="utf-8")
STORES = (MemoryStore, PickleFileStore, RedisStore, NullStore)


def row(name: str) -> list[str]:
    """The cells of a row of the large table, one for each store."""
    (line,) = re.findall(rf"^\| (?:\*\*)?{re.escape(name)}.*\|$", PAGE, re.MULTILINE)
    return [cell.strip() for cell in line.split("|")[2:-1]]


def measured(page: str, table: str, contestant: str = "memo") -> float:
    """The first figure of a contestant in a table of a page."""
    results = (DOCS / page).read_text(encoding="utf-8").partition("## Results")[2]
    section = re.search(rf"^{table}: .*?(?=^\w+: |\Z)", results, re.MULTILINE | re.DOTALL)[0]
    return float(re.search(rf"^  {contestant} +([\d.,]+)", section, re.MULTILINE)[1].replace(",", ""))


def test_the_large_table_has_the_stores_and_settings_that_there_are():
    assert row("class") == [f"`{store.__name__}`" for store in STORES]
    for cell, store in zip(row("as a setting"), STORES, strict=True):
        url = cell.strip("`")
        if store is PickleFileStore:
            url = url.replace("/var/cache", "/tmp")
        check_url(url, "the page: ")
        if store is not PickleFileStore:
            made = resolve_store(url)
            assert type(made) is store
            made.close()


def test_it_says_the_default_ttls_that_they_have(tmp_path):
    file = PickleFileStore(tmp_path / "f.memo")
    assert [store.default_ttl for store in (MemoryStore(), file, RedisStore())] == [None, None, 60]
    assert row("default ttl")[:3] == ["none", "none", "60 seconds"]
    file.close()


@pytest.mark.parametrize(
    ("number", "page", "table", "unit"),
    [
        (0, "performance.md", "hit", 1000),  # ns
        (1, "performance-file.md", "decorated", 1),  # µs
        (2, "performance-redis.md", "sync", 1),
    ],
)
def test_what_a_hit_costs_is_what_was_measured(number, page, table, unit):
    cell = row("a hit costs")[number]
    microseconds = measured(page, table) / unit
    about = [float(each) * (1000 if "ms" in cell else 1) for each in re.findall(r"\d+(?:\.\d+)?", cell)]
    if len(about) == 1:
        assert about[0] / 1.5 < microseconds < about[0] * 1.5
    else:
        assert about[0] <= microseconds <= about[1]
