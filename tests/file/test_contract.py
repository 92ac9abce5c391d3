"""The file store keeps the promises of every store, with and without a secret, blocking and awaited."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

from memo import PickleFileStore
from memo.testing import StoreContract, StoreMachine

SECRET = b"a secret of the tests, 32 bytes."


class InFolder:
    """Each store has a file of its own, in a folder that is gone with the test."""

    secret = None

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path):
        self.folder, self.made = tmp_path, []
        yield
        for store in self.made:
            store.close()

    def make_store(self, clock, default_ttl=None):
        path = self.folder / f"cache{len(self.made)}.memo"
        self.made.append(PickleFileStore(path, default_ttl=default_ttl, secret=self.secret, clock=clock))
        return self.made[-1]


class TestFileStore(InFolder, StoreContract):
    pass


class TestSignedFileStore(InFolder, StoreContract):
    secret = SECRET


class FileMachine(StoreMachine):
    copies = True
    secret = None

    def make_store(self, clock):
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        path = os.path.join(self.folder.name, "cache.memo")
        return PickleFileStore(path, default_ttl=self.DEFAULT_TTL, secret=self.secret, clock=clock)

    def teardown(self):
        super().teardown()
        self.folder.cleanup()


class AwaitedFileMachine(FileMachine):
    awaits = True


TestFileMachine = FileMachine.TestCase
TestAwaitedFileMachine = AwaitedFileMachine.TestCase
if os.environ.get("MEMO_PROFILE") != "nightly":
    TestFileMachine.settings = settings(max_examples=30)
    TestAwaitedFileMachine.settings = settings(max_examples=8)
