"""The documentation's site: one command builds it, without warnings, and every public name is on it."""

from __future__ import annotations

import doctest
import importlib.util
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import memo
import memo.testing

ROOT = Path(__file__).parent.parent
API = ROOT / "docs" / "api.md"
COMMAND = "python -m mkdocs build --strict"

PUBLIC = [
    *(("memo", name) for name in memo.__all__ if name != "__version__"),
    *(("memo.testing", name) for name in memo.testing.__all__),
]


def directives() -> list[str]:
    return re.findall(r"^::: (\S+)$", API.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, as the command builds it, but elsewhere."""
    folder = tmp_path_factory.mktemp("documentation") / "site"
    command = [sys.executable, *COMMAND.split()[1:], "--site-dir", str(folder)]
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_one_command_builds_a_page_of_every_document(site):
    for document in (ROOT / "docs").glob("*.md"):
        assert (site / document.with_suffix(".html").name).is_file(), document


@pytest.mark.parametrize(("module", "name"), PUBLIC, ids=[".".join(each) for each in PUBLIC])
def test_every_public_name_is_in_the_reference_that_is_made_from_the_docstrings(module, name):
    """By identity: `memo.report` is a function, and a module of that name has it."""
    thing = getattr(sys.modules[module], name)
    assert any(pkgutil.resolve_name(path) is thing for path in directives()), f"docs/api.md lacks ::: {module}.{name}"


def test_each_of_them_is_shown_with_its_docstring(site):
    page = (site / "api.html").read_text(encoding="utf-8")
    for path in directives():
        assert f'id="{path}"' in page, path
        section = page.partition(f'id="{path}"')[2].partition("doc-contents")[2]
        assert re.match(r'[^<]*>\s*(<p class="doc doc-class-bases">.*?</p>\s*)?<p>\w', section, re.DOTALL), path


def test_pages_load_nothing_from_other_hosts(site):
    for page in site.glob("*.html"):
        loaded = re.findall(r"<(?:script|img|iframe)[^>]* src=\"?(https?:[^\s\">]+)", page.read_text(encoding="utf-8"))
        loaded += re.findall(r"<link[^>]* href=\"?(https?:[^\s\">]+)", page.read_text(encoding="utf-8"))
        assert loaded == [], page.name


def test_doctests_are_shown_as_code(site):
    page = (site / "api.html").read_text(encoding="utf-8")
    assert "square.key_for" in re.sub(r"<[^>]+>", "", page)
    assert "<blockquote>" not in page


def test_the_continuous_integration_builds_the_site_with_that_command():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert re.search(rf"^{re.escape(COMMAND)} ", script, re.MULTILINE)


def test_what_builds_the_site_is_an_extra_and_there_for_developers():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    docs, dev = (
        set(re.findall(r'"([^"]+)"', re.search(rf"^{extra} = \[(.*?)\]$", text, re.MULTILINE | re.DOTALL)[1]))
        for extra in ("docs", "dev")
    )
    assert any(requirement.startswith("mkdocstrings[python]") for requirement in docs)
    assert docs <= dev


def doctests() -> ModuleType:
    spec = importlib.util.spec_from_file_location("doctests", ROOT / "docs" / "doctests.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_doctests_of_what_shows_doctests_pass():
    results = doctest.testmod(doctests())
    assert results.attempted == 1
    assert results.failed == 0


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Add.", "Add."),
        ("Add.\n\n>>> 1\n1\n\nThen more.", "Add.\n\n```pycon\n>>> 1\n1\n```\n\nThen more."),
        (">>> 1\n1\n>>> 2\n2\n\n>>> 3\n3", "```pycon\n>>> 1\n1\n>>> 2\n2\n```\n\n```pycon\n>>> 3\n3\n```"),
        ("a > b >>> c", "a > b >>> c"),
    ],
)
def test_a_doctest_ends_at_an_empty_line(text, shown):
    assert doctests().fenced(text) == shown
