"""What several folders of tests share."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import setuptools  # noqa: F401 - replaces distutils, and refuses to once another import has brought Python's own
from copies import pass_by_garbage
from failing_disk import failing_at
from tiny_model import write_tiny_model

__all__ = ["failing_at"]

REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_collection() -> None:
    """Importing the tests and what they import makes millions of objects and no garbage."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Every run of a test looks for garbage; what the imports and the collected tests hold never is any."""
    gc.enable()
    pass_by_garbage()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole runs take longest and go first: of two processes none is left alone with one of them at the end."""
    items.sort(key=lambda item: item.path.parent != REPOSITORY / "tests")


HELD = pytest.StashKey[tuple[int, Path]]()


def pytest_runtest_call(item: pytest.Item) -> None:
    """Nor is what fixtures have imported since, or what an earlier file of tests has left in caches."""
    held = (len(sys.modules), item.path)
    if item.config.stash.get(HELD, None) != held:
        item.config.stash[HELD] = held
        pass_by_garbage()


@pytest.fixture(scope="session", autouse=True)
def unwaited() -> Iterator[None]:
    """No test of this process waits for the disk itself: a real fsync takes milliseconds, and runs ask for thousands."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random chat model of a few thousand weights; not to be changed."""
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets beside the repository; skips where it is not there."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the shared data sets are not at {folder}")
    return folder
