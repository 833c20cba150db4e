"""Every storage counts once, from the operation that makes it until nothing refers to it."""

from __future__ import annotations

import torch

from luthier.planner.tracker import Tracker, all_tensors, storages


def test_bytes_come_and_go_and_the_most_is_kept_by_phase() -> None:
    with Tracker() as tracker:
        with tracker.doing("first", "a"):
            one = torch.empty(100)
            two = torch.empty(50, dtype=torch.float64)
        assert tracker.held == {"a": 800}
        del two
        with tracker.doing("second", "b"):
            three = torch.empty(25)
        assert tracker.held == {"a": 400, "b": 100}
        del one, three
        assert tracker.num_bytes == 0
    assert tracker.peaks["first"].num_bytes == 800
    assert tracker.peaks["second"].parts == {"a": 400, "b": 100}


def test_a_view_holds_nothing_of_its_own_and_keeps_all_of_what_it_looks_at() -> None:
    with Tracker() as tracker:
        whole = torch.empty(100)
        part = whole[:10].view(2, 5)
        assert tracker.num_bytes == 400
        del whole
        assert tracker.num_bytes == 400
        del part
        assert tracker.num_bytes == 0


def test_tensors_from_before_can_be_named() -> None:
    before = torch.empty(10)
    with Tracker() as tracker:
        tracker.note([before], "weights")
        tracker.note([before[:5]], "trained")
        assert {part: count for part, count in tracker.held.items() if count} == {"trained": 40}


def test_tied_tensors_count_once() -> None:
    layer = torch.nn.Linear(4, 4, bias=False)
    other = torch.nn.Linear(4, 4, bias=False)
    other.weight = layer.weight
    assert storages(all_tensors(torch.nn.ModuleList([layer, other]))) == 64
