"""Tournaments: ratings against their definitions, what orders and questions do to them, and what is said of the judging."""

from __future__ import annotations

import csv
import itertools
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from luthier.cli.main import main
from luthier.data.reading import Row, read_rows
from luthier.errors import DataError, UsageError
from luthier.evaluation.judged.bradley_terry import (
    POINTS,
    bradley_terry,
    groups,
    strengths,
    unbounded,
    wins_by_question,
)
from luthier.evaluation.judged.elo import elo, ratings_after
from luthier.evaluation.judged.judgments import Judged, Judgment, Scores, judged_from
from luthier.evaluation.judged.pairs import Tally, both_orders, by_pair, by_system, position_bias
from luthier.evaluation.judged.picture import write_picture
from luthier.evaluation.judged.relative import relative_scores
from luthier.evaluation.judged.tournament import hold
from luthier.types import Origin


def games(*results: tuple[str, str, float]) -> list[Judgment]:
    return [Judgment(str(index), first, second, outcome) for index, (first, second, outcome) in enumerate(results)]


def rows_of(*values: dict[str, Any]) -> list[Row]:
    return [Row(value, Origin("judgments.jsonl", index)) for index, value in enumerate(values, start=1)]


def drawn_games(strength: dict[str, float], num_questions: int, seed: int) -> list[Judgment]:
    """Each two systems once in each order on each question, won with the probability of their strengths (in θ)."""
    generator = np.random.default_rng(seed)
    return [
        Judgment(str(question), a, b, float(generator.random() < 1 / (1 + math.exp(strength[b] - strength[a]))))
        for question in range(num_questions)
        for a, b in itertools.permutations(strength, 2)
    ]


# ── Elo ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_game_between_equals_moves_both_by_half_of_k() -> None:
    first, second, outcome = np.array([0]), np.array([1]), np.array([1.0])
    order = np.zeros((1, 1), np.int32)
    assert ratings_after(first, second, outcome, order, 2).tolist() == [[1016.0, 984.0]]


def test_ratings_are_those_of_games_played_one_by_one_and_their_sum_stays() -> None:
    played = games(("a", "b", 1), ("b", "c", 0.5), ("c", "a", 0), ("a", "b", 0), ("c", "b", 1))
    place = {"a": 0, "b": 1, "c": 2}
    orders = np.array(list(itertools.permutations(range(5))), np.int32)
    columns = [np.array([place[one.first] for one in played]), np.array([place[one.second] for one in played])]
    together = ratings_after(*columns, np.array([one.outcome for one in played]), orders, 3)
    for order, found in zip(orders[::17], together[::17], strict=True):
        rating = dict.fromkeys("abc", 1000.0)
        for one in (played[index] for index in order):
            gain = 32 * (one.outcome - 1 / (1 + 10 ** ((rating[one.second] - rating[one.first]) / 400)))
            rating[one.first] += gain
            rating[one.second] -= gain
        assert list(rating.values()) == pytest.approx(found.tolist())
    assert together.sum(1) == pytest.approx(np.full(120, 3000.0))
    mean = elo(played, orders=4000, seed=3)
    assert [mean[name].mean for name in "abc"] == pytest.approx(together.mean(0).tolist(), abs=2)
    assert [mean[name].spread for name in "abc"] == pytest.approx(together.std(0).tolist(), abs=2)


# ── Bradley–Terry ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_two_systems_strengths_differ_by_the_logarithm_of_their_odds() -> None:
    rated = bradley_terry(games(*[("a", "b", 1)] * 300, *[("b", "a", 1)] * 100))
    assert rated["a"].value - rated["b"].value == pytest.approx(400 * math.log10(3), abs=0.5)


def test_at_the_strengths_each_system_wins_as_often_as_they_say() -> None:
    """The slope of the likelihood is 0 there, the prior's part apart."""
    wins = wins_by_question(drawn_games({"a": 0.7, "b": 0.0, "c": -0.3}, 60, 1), ["a", "b", "c"]).sum(0)
    theta = strengths(wins[None])[0]
    expected = ((wins + wins.T) / (1 + np.exp(theta[None, :] - theta[:, None]))).sum(1)
    assert expected + (POINTS / 1000) ** 2 * theta == pytest.approx(wins.sum(1), abs=1e-6)


def test_strengths_are_recovered_from_games_and_lie_in_their_intervals() -> None:
    true = dict(zip("abcde", (1.2, 0.5, 0.0, -0.6, -1.1), strict=True))
    inside = 0
    for seed in range(12):
        rated = bradley_terry(drawn_games(true, 120, seed), resamples=300, seed=seed)
        assert list(rated) == sorted(true, key=lambda name: -rated[name].value)
        inside += sum(one.low <= 1000 + POINTS * true[name] <= one.high for name, one in rated.items())
    assert 0.85 <= inside / 60 <= 1  # 95 % of 60, give or take three standard errors


def test_strengths_do_not_depend_on_the_order_of_the_games_or_of_the_two_systems() -> None:
    played = drawn_games({"a": 0.5, "b": 0.0, "c": -0.5}, 20, 2)
    turned = [one.turned if index % 3 else one for index, one in enumerate(reversed(played))]
    straight, other = bradley_terry(played, resamples=10), bradley_terry(turned, resamples=10)
    assert [one.value for one in straight.values()] == pytest.approx([one.value for one in other.values()])


def test_systems_that_never_met_and_systems_without_a_bound_are_named() -> None:
    played = games(("a", "b", 1), ("b", "a", 0), ("c", "d", 0.5), ("d", "e", 1), ("e", "d", 0.5))
    assert groups(played) == [("a", "b"), ("c", "d", "e")]
    assert unbounded(played) == (["a"], ["b"])
    notes = " ".join(hold(Judged(tuple(played), (), 2), orders=10).notes)
    assert "a, b; c, d, e" in notes
    assert "a won every game" in notes
    assert "b lost every game" in notes
    assert "2 rows hold no verdict" in notes
    assert all(math.isfinite(one.value) for one in bradley_terry(played).values())


# ── pairs and places ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_system_wins_a_question_only_if_it_wins_in_both_orders() -> None:
    played = [
        Judgment("1", "a", "b", 1.0), Judgment("1", "b", "a", 0.0),
        Judgment("2", "a", "b", 1.0), Judgment("2", "b", "a", 1.0),
        Judgment("3", "b", "a", 1.0),
    ]  # fmt: skip
    assert {one.question: one.outcome for one in both_orders(played)} == {"1": 1.0, "2": 0.5, "3": 0.0}
    assert by_pair(played) == {("a", "b"): Tally(wins=1, ties=1, losses=1)}
    assert by_system(played) == {"a": Tally(3, 0, 2), "b": Tally(2, 0, 3)}
    bias = position_bias(played)
    assert (bias.first, bias.second, bias.ties, bias.num_twice, bias.consistent) == (4, 1, 0, 2, 0.5)


def test_a_judge_that_always_takes_the_first_is_found_out() -> None:
    played = [Judgment(str(q), a, b, 1.0) for q in range(20) for a, b in (("x", "y"), ("y", "x"))]
    bias = position_bias(played)
    assert bias.p < 1e-9
    assert bias.consistent == 0
    assert by_pair(played) == {("x", "y"): Tally(0, 20, 0)}
    assert any("shown first wins more often" in note for note in hold(Judged(tuple(played), (), 0), orders=10).notes)


def test_relative_scores_are_ratios_of_sums_in_each_order() -> None:
    scores = [Scores("1", "new", "old", 8, 10), Scores("2", "new", "old", 1, 5), Scores("1", "old", "new", 4, 6)]
    share = relative_scores(scores, "old")["new"]
    assert (share.shown_first, share.shown_second, share.mean) == (9 / 15, 6 / 4, (9 / 15 + 6 / 4) / 2)


def test_judges_are_compared_on_what_both_judged() -> None:
    verdicts = {"ann": "112", "bob": "113", "cid": "2"}
    rows = rows_of(*(
        {"question_id": q, "model_1": "a", "model_2": "b", "verdict": verdict, "judge": judge}
        for judge, said in verdicts.items() for q, verdict in enumerate(said)
    ))  # fmt: skip
    held = hold(judged_from(rows), orders=10)
    ann_bob = held.judges[0]
    assert (ann_bob.left, ann_bob.right, ann_bob.num_pairs) == ("ann", "bob", 3)
    assert ann_bob.share == pytest.approx(2 / 3)
    assert held.fleiss == pytest.approx((1 / 3 - 5 / 9) / (1 - 5 / 9))  # question 0 alone: two of three agree


# ── rows ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_verdicts_are_read_in_their_usual_words() -> None:
    said = ["1", 2, 3.0, "A", "b", "tie", "model_a", "model_2", "left", "right", "first"]
    rows = rows_of(*({"model_a": "left", "model_b": "right", "winner": verdict} for verdict in said))
    assert [one.outcome for one in judged_from(rows).judgments] == [1, 0, 0.5, 1, 0, 0.5, 1, 0, 1, 0, 1]


def test_rows_without_a_known_verdict_are_counted() -> None:
    judged = judged_from(rows_of(*({"model_1": "a", "model_2": "b", "verdict": v} for v in (1, -1, "unsure"))))
    assert (len(judged.judgments), judged.num_without) == (1, 2)


@pytest.mark.parametrize(
    ("values", "field", "words"),
    [
        ({"model_1": "a", "verdict": 1}, "model_1", None),
        ({"model_1": "a", "model_2": "a", "verdict": 1}, "model_1", "with itself"),
        ({"model_1": "a", "model_2": "b"}, "verdict", "no column 'verdict'"),
        ({"model_1": "a", "model_2": "b", "score_1": 3}, "score_2", "no score"),
        ({"model_1": "a", "model_2": "b", "score_1": "nan", "score_2": 1}, "score_1", "no score"),
    ],
)
def test_rows_that_are_no_judgments_are_refused_with_their_place(values: Any, field: str, words: str | None) -> None:
    with pytest.raises(DataError) as raised:
        judged_from(rows_of({"model_1": "a", "model_2": "b", "verdict": 1}, values))
    assert raised.value.line == 2
    assert raised.value.field == ("model_2" if words is None else field)
    assert (words or "no column") in str(raised.value)


def test_a_file_without_any_verdict_is_refused() -> None:
    with pytest.raises(DataError, match="none of 1 rows"):
        judged_from(rows_of({"model_1": "a", "model_2": "b", "verdict": "?"}))


def test_a_reference_needs_scores_and_a_name_that_was_judged() -> None:
    judged = Judged(tuple(games(("a", "b", 1))), (), 0)
    with pytest.raises(UsageError, match="no system is called 'c'"):
        hold(judged, reference="c", orders=10)
    with pytest.raises(UsageError, match="needs scores"):
        hold(judged, reference="a", orders=10)


# ── published judgments ─────────────────────────────────────────────────────────────────────────────────────────────

RELEASED = {
    "gpt4": 1348, "65b-guanaco": 1022, "30b-guanaco": 992, "vicuna-13b": 974, "gpt35": 966, "13b-guanaco": 913, "bard": 902,
    "7b-guanaco": 879,
}  # fmt: skip
"""Elo as the QLoRA paper's model card gives it, in its order."""


def test_elo_of_the_released_judgments_is_qloras_in_its_order(shared_data: Path) -> None:
    judged = judged_from(read_rows(str(shared_data / "qlora_gpt4_ratings" / "pairwise_vicuna.csv"), lambda text: None))
    ratings = elo(judged.judgments, orders=300)
    assert sorted(ratings, key=lambda name: -ratings[name].mean) == list(RELEASED)
    for name, published in RELEASED.items():
        assert ratings[name].mean == pytest.approx(published, abs=40 if name == "gpt4" else 15)
    assert judged.num_without == 13


def test_relative_scores_of_the_released_ratings_are_qloras_in_one_command(
    shared_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the released file the two scores of rows with a model based on LLaMA stand the other way round than their names."""
    words = ["tournament", str(shared_data / "qlora_gpt4_ratings" / "relative_vicuna.csv"), "--orders", "1", "--json"]
    assert main([*words, "--against", "gpt-3.5", "--swap-scores", "[0-9]*b-*"]) == 0
    document = json.loads(capsys.readouterr().out)
    share = {one["name"]: 100 * one["relative"]["mean"] for one in document["standings"] if one["relative"]}
    for size, published in {"65b": 99.3, "30b": 97.8, "13b": 90.4, "7b": 87.0}.items():
        assert share[f"{size}-guanaco"] == pytest.approx(published, abs=0.1)
    assert any("two scores were swapped" in note for note in document["notes"])


def test_scores_are_swapped_in_rows_of_the_systems_named_and_in_no_others() -> None:
    row = {"model_1": "7b-a", "model_2": "ref", "score_1": 9, "score_2": 3}
    other = {**row, "model_1": "bard"}
    judged = judged_from(rows_of(row, other), ["7b-*"])
    assert [(one.score_first, one.score_second) for one in judged.scores] == [(3, 9), (9, 3)]
    assert [one.outcome for one in judged.judgments] == [0, 1]
    assert judged.num_swapped == 1


def test_a_pattern_of_swapped_scores_that_names_nobody_is_refused() -> None:
    with pytest.raises(UsageError, match="called like 'b-'") as caught:
        judged_from(rows_of({"model_1": "a", "model_2": "b", "score_1": 9, "score_2": 3}), ["b-"])
    assert "Scored are a, b" in caught.value.mend
    with pytest.raises(UsageError) as caught:
        judged_from(rows_of({"model_1": "a", "model_2": "b", "verdict": 1}), ["*"])
    assert "No row has score_1" in caught.value.mend


def test_pairs_of_the_released_verdicts_are_a_plain_count(shared_data: Path) -> None:
    path = shared_data / "vicuna_gpt4_judgments" / "judgments.jsonl"
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    judged = judged_from(read_rows(str(path), lambda text: None))
    bias = position_bias(judged.judgments)
    assert Counter(row["verdict"] for row in rows) == {1: bias.first, 2: bias.second, 3: bias.ties}
    said = {(row["question_id"], row["model_1"], row["model_2"]): row["verdict"] for row in rows}
    other = {1: 2, 2: 1, 3: 3}
    twice = [(v, other[said[q, b, a]]) for (q, a, b), v in said.items() if a < b]
    assert bias.num_twice == len(twice) == 160
    assert bias.consistent == sum(a == b for a, b in twice) / 160
    chance = sum(Counter(a for a, _ in twice)[v] * Counter(b for _, b in twice)[v] for v in other) / 160**2
    assert bias.kappa == pytest.approx((bias.consistent - chance) / (1 - chance))
    for (a, b), tally in by_pair(judged.judgments).items():
        here = [(said[q, a, b], other[said[q, b, a]]) for q in range(1, 81)]
        assert tally == Tally(here.count((1, 1)), 80 - here.count((1, 1)) - here.count((2, 2)), here.count((2, 2)))


# ── the command ─────────────────────────────────────────────────────────────────────────────────────────────────────


def write_judgments(path: Path, played: list[Judgment]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["model_1", "model_2", "question_id", "score_1", "score_2"])
        for one in played:
            writer.writerow([one.first, one.second, one.question, 5 + 2 * one.outcome, 6])


def test_the_command_prints_a_table_json_and_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_judgments(tmp_path / "judged.csv", drawn_games({"base": -1.0, "tuned": 1.0}, 30, 4))
    words = ["tournament", str(tmp_path / "judged.csv"), "--orders", "50", "--against", "base"]
    assert main([*words, "--plot", str(tmp_path / "ratings.png")]) == 0
    text = capsys.readouterr().out
    assert text.splitlines()[1].startswith("tuned")
    assert "30 pairs were judged in both orders" in text
    assert (tmp_path / "ratings.png").read_bytes()[:4] == b"\x89PNG"
    assert main([*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in document["standings"]] == ["tuned", "base"]
    assert document["standings"][0]["relative"]["mean"] > 1
    assert document["pairs"][0]["against"] == "tuned"


def test_a_picture_of_systems_has_one_line_for_each(tmp_path: Path) -> None:
    held = hold(Judged(tuple(drawn_games({"a": 0.0, "b": 0.1, "c": 0.2}, 10, 5)), (), 0), orders=10)
    write_picture(held, tmp_path / "three.png")
    taller = hold(Judged(tuple(drawn_games(dict.fromkeys("abcdefgh", 0.0), 4, 5)), (), 0), orders=10)
    write_picture(taller, tmp_path / "eight.png")
    heights = [int.from_bytes((tmp_path / name).read_bytes()[20:24]) for name in ("three.png", "eight.png")]
    assert heights[0] < heights[1]
