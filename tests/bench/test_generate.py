"""Rates against the best other contestant, and where answers part."""

from __future__ import annotations

from bench.generate import Measured, against, differing, measured, told
from bench.generate_side import _cut


def test_answers_part_at_the_first_token_that_is_another() -> None:
    assert differing([[1, 2, 3], [4], [5, 6]], [[1, 2, 3], [4, 7], [5, 8]]) == [(1, 1), (2, 1)]


def test_an_answer_ends_with_its_first_stop_token() -> None:
    assert _cut([5, 2, 9, 2], [2, 3]) == [5, 2]
    assert _cut([5, 6], [2]) == [5, 6]


def test_ratios_are_over_the_best_of_the_others() -> None:
    rounds = {"ours": [Measured(30, 3, 0, None)], "a": [Measured(10, 2, 0, None)], "b": [Measured(20, 1, 0, None)]}
    found = against(("ours", "a", "b"), rounds)
    assert found["tokens_per_second"].of_medians == 1.5
    assert found["tokens_per_cpu_second"].of_medians == 1.5


def test_the_share_of_the_products_and_the_memory_above_the_model_are_told() -> None:
    values = {
        "new_tokens": 100,
        "wall_seconds": 5.0,
        "cpu_seconds": 10.0,
        "peak_bytes": 900,
        "loaded_peak_bytes": 400,
        "product_seconds": {"wall": 3.0, "cpu": 6.0},
        "answers": [[1, 2]],
        "cache_bytes": 2_000_000_000,
        "stated_bytes": 3_000_000_000,
    }
    run = measured(values)
    assert (run.tokens_per_second, run.tokens_per_cpu_second, run.added_bytes, run.product_share) == (20, 10, 500, 0.6)
    other = {**values, "wall_seconds": 10.0, "answers": [[1, 3]]}
    del other["product_seconds"]
    every = {"ours": [values], "theirs": [other]}
    document, text = told("task", "best peer", ("ours", "theirs"), every, {"theirs": [2e-4]})
    assert document["passed"]
    assert "theirs 1; the two best scores there are at most 2.0e-04 apart" in text
    assert "2.00 (2.00–2.00) times a second" in text
    assert "60%" in text
    assert "2.00 GB, of 3.00 stated" in text
    for parted, stated in (({"theirs": [0.02]}, 3_000_000_000), ({"theirs": []}, 1_000_000_000)):
        every["ours"] = [{**values, "stated_bytes": stated}]
        assert not told("task", "best peer", ("ours", "theirs"), every, parted)[0]["passed"]
