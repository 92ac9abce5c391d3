"""The complete custom store that lives only in the documentation passes its own test file, run by pytest for real."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "custom-store.md"


def files() -> dict[str, str]:
    """The code blocks of the page that begin with the name of a file."""
    blocks = re.findall(
        r"^```python\n(# (\w+\.py)\n.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    return {name: source for source, name in blocks}


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    # Derandomised as our own machines are; a reader's run draws other examples each time.
    (folder / "conftest.py").write_text(
        "from hypothesis import HealthCheck, settings\n"
        "settings.register_profile('fixed', derandomize=True, database=None, deadline=None, max_examples=25,\n"
        "    suppress_health_check=[HealthCheck.too_slow])\n"
        "settings.load_profile('fixed')\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:asyncio", "-W", "error", "-x"]
    return subprocess.run([*command, str(folder)], cwd=folder, capture_output=True, text=True, timeout=300)


def test_the_page_has_a_store_and_its_test_file_and_they_are_short():
    assert list(files()) == ["folder_store.py", "test_folder_store.py"]
    code = {name: [line for line in source.splitlines() if line.strip()] for name, source in files().items()}
    assert len(code["folder_store.py"]) <= 40
    assert len(code["test_folder_store.py"]) <= 15


def test_the_store_passes_the_contract_and_the_machine(tmp_path):
    for name, source in files().items():
        (tmp_path / name).write_text(source)
    done = run(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed in", done.stdout)
    assert passed is not None, done.stdout
    assert int(passed[1]) > 200
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("old", "new", "failing"),
    [
        ("missing_ok=True)", "missing_ok=True) if False else None", "test_delete_says_whether_there_was_a_value"),
        (
            'key.encode("utf-8", "surrogatepass")',
            'key.encode("utf-8", "replace")',
            "test_every_text_is_a_key_of_its_own",
        ),
        ("yield pickle.loads", "_ = pickle.loads", "test_every_text_is_a_key_of_its_own"),
    ],
)
def test_a_mistake_in_the_store_fails_its_test_file(tmp_path, old, new, failing):
    for name, source in files().items():
        assert name.startswith("test_") or source.count(old) == 1
        (tmp_path / name).write_text(source.replace(old, new))
    done = run(tmp_path)
    assert done.returncode == 1, done.stdout
    assert failing in done.stdout
