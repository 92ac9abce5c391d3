"""What type checkers say of `api.py`: an error on each line that ends in `# error`, and on no other.

`# error: mypy` and `# error: pyright` mark the known limits of one of them; docs/limits.md has the list.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
API = HERE / "api.py"


def expected(checker: str) -> list[int]:
    lines = []
    for number, line in enumerate(API.read_text().splitlines(), 1):
        mark = re.search(r"# error(?:: (\w+))?$", line)
        if mark and mark[1] in (None, checker):
            lines.append(number)
    return lines


def run(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, cwd=HERE.parents[1], check=False
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout


def test_mypy_strict_sees_the_functions_own_parameters_and_results(tmp_path: Path) -> None:
    output = run("mypy", "--strict", f"--cache-dir={tmp_path}", "--config-file=", str(API))
    found = {int(number) for number in re.findall(r"api\.py:(\d+): error", output)}
    assert sorted(found) == expected("mypy"), output


def test_pyright_sees_the_functions_own_parameters_and_results() -> None:
    output = run("pyright", "--outputjson", str(API))
    report = json.loads(output[output.index("{") :])
    errors = [each for each in report["generalDiagnostics"] if each["severity"] == "error"]
    assert sorted({each["range"]["start"]["line"] + 1 for each in errors}) == expected("pyright"), output


def test_only_mypy_has_limits_and_only_for_static_methods_and_unbound_calls() -> None:
    limits = [line for line in API.read_text().splitlines() if line.endswith("# error: mypy")]
    assert all("static_" in line or "Base.method(base" in line for line in limits)
    assert "# error: pyright" not in API.read_text()
