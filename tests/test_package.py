"""What is installed: the version, the typing marker, the command, the files."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import memo
from memo import __main__

ROOT = Path(__file__).parent.parent
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built by the backend itself, as `python -m build` has it done, in this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    code = "import sys; from hatchling.build import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, check=True, capture_output=True, timeout=120)
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as opened:
        yield opened


def test_the_version_is_the_projects():
    assert re.findall(r'^version = "(.+)"$', PROJECT, re.MULTILINE) == [memo.__version__]


def test_every_public_name_is_there_once():
    assert len(set(memo.__all__)) == len(memo.__all__)
    for name in memo.__all__:
        assert hasattr(memo, name), name


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    modules = {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "memo").rglob("*.py*") if path.suffix in (".py", ".pyi")
    }
    inside = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert inside == modules | {"memo/py.typed"}


def test_the_wheel_says_that_it_is_typed(wheel):
    assert "memo/py.typed" in wheel.namelist()


def test_the_wheel_brings_the_command(wheel):
    (entries,) = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
    (commands,) = re.findall(r"\[console_scripts\]\n([^\[]*)", wheel.read(entries).decode())
    assert commands.split() == ["memo", "=", "memo.__main__:main"]
    assert callable(__main__.main)


def test_the_wheel_brings_the_readme_the_licence_and_the_version(wheel):
    (name,) = [name for name in wheel.namelist() if name.endswith("METADATA")]
    metadata = wheel.read(name).decode()
    assert f"\nVersion: {memo.__version__}\n" in metadata
    assert "# memo\n" in metadata
    assert any(name.endswith("/LICENSE") for name in wheel.namelist())


def test_the_changelog_has_a_place_for_what_is_not_released():
    assert "\n## [Unreleased]\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
