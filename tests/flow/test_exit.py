"""The interpreter's exit waits for no load and says nothing about it."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPTS = {
    "a load in a daemon thread": """
        entered = threading.Event()
        @cache_aside
        def f(x):
            entered.set()
            threading.Event().wait()
        threading.Thread(target=f, args=(7,), daemon=True).start()
        entered.wait()
        threading.Thread(target=f, args=(7,), daemon=True).start()
        while not f.stats().waits:
            pass
    """,
    "a pending task": """
        @cache_aside
        async def f(x):
            await asyncio.Event().wait()
        async def main():
            calls = [asyncio.ensure_future(f(7)) for _ in range(3)]
            while f.stats().waits < 2:
                await asyncio.sleep(0)
        asyncio.run(main())
    """,
    "a loop in a daemon thread": """
        entered = threading.Event()
        @cache_aside
        async def f(x):
            entered.set()
            await asyncio.Event().wait()
        threading.Thread(target=lambda: asyncio.run(f(7)), daemon=True).start()
        entered.wait()
    """,
    "a cached function that is called at exit": """
        import atexit
        @cache_aside
        def f(x):
            return x
        atexit.register(f, 7)
        f(7)
    """,
    "a cached function that is called by a finalizer at the very end": """
        @cache_aside
        def f(x):
            return x
        class Last:
            def __del__(self, f=f):
                f(7)
        last = Last()
        f(8)
    """,
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_exit_is_silent(script):
    lines = "".join(line[8:] + "\n" for line in SCRIPTS[script].splitlines())
    code = "import asyncio, threading\nfrom memo import cache_aside\n" + lines
    run = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert (run.returncode, run.stderr, run.stdout) == (0, "", "")
