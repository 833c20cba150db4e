"""A process is known by more than its id."""

from __future__ import annotations

import os
import subprocess
import sys

from luthier.store.owners import owner_is_alive, owner_tag


def test_this_process_is_alive_and_one_that_ended_is_not() -> None:
    code = "from luthier.store.owners import owner_tag; print(owner_tag())"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert owner_is_alive(owner_tag()) is True
    assert owner_is_alive(ended) is False


def test_another_process_with_the_same_id_is_not_taken_for_it() -> None:
    host, pid, birth = owner_tag().split("-")
    assert int(pid) == os.getpid()
    assert owner_is_alive(f"{host}-{pid}-{int(birth) + 1}") is False


def test_of_another_machine_nothing_is_known() -> None:
    assert owner_is_alive("000000-1-1") is None
    assert owner_is_alive("no tag at all") is None
