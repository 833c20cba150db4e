"""A model's judgments: what is asked, that nothing is asked twice, and that the numbers are those of counting by hand."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from luthier.data.reading import iter_rows
from luthier.errors import JudgeFault, NetworkError, RunMismatch
from luthier.evaluation.intervals import Estimate
from luthier.evaluation.judged.blind import Pair, Question, Response, pairs_of
from luthier.evaluation.judged.by_judge import WinRate, judge_summaries, settled
from luthier.evaluation.judged.by_person import preference_rows
from luthier.evaluation.judged.judgments import judged_from
from luthier.evaluation.judged.model_session import judge_by_model
from luthier.evaluation.judged.pairs import Tally
from luthier.evaluation.judged.records import JudgmentFile
from luthier.evaluation.judged.tournament import hold
from luthier.evaluation.judged.verdicts import Compared, Reply, TextJudge, Verdict, asked_about, outcome_in


def quiet(*told: object) -> None:
    """Hear nothing."""


def questions(number: int, systems: Sequence[str] = ("ours", "theirs")) -> list[Question]:
    return [
        Question(f"prompt {n}", tuple(Response(str(i), f"{name} {n}", name) for i, name in enumerate(systems, start=1)))
        for n in range(number)
    ]


@dataclass
class Scripted:
    """A judge whose verdicts a function decides, and that notes what it was asked."""

    say: Callable[[Compared], float | None]
    name: str = "judge"
    orders: int = 2
    at_once: int = 3
    guideline: str | None = None
    asked: list[Compared] = field(default_factory=list)

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"kind": "scripted", "orders": self.orders, "guideline": self.guideline}

    def verdicts(self, compared: Sequence[Compared]) -> Iterator[tuple[int, Verdict]]:
        for place in reversed(range(len(compared))):  # they need not come in order
            self.asked.append(compared[place])
            yield place, Verdict(self.say(compared[place]), "words")


def judged(
    path: Path, judge: Scripted, asked: Sequence[Question], *, per_prompt: int = 1, most_unreadable: float = 1.0
) -> JudgmentFile:
    file = JudgmentFile.opened(path, quiet)
    pairs = pairs_of(asked, per_prompt, quiet)
    judge_by_model(pairs, file, judge, seed=0, most_unreadable=most_unreadable, progress=quiet)
    return file


def leaning(seed: int) -> Callable[[Compared], float | None]:
    """A judge that mostly says what it saw first, sometimes what it prefers, sometimes nothing."""

    def say(compared: Compared) -> float | None:
        drawn = random.Random(f"{seed} {compared.first} {compared.second}").random()
        if drawn < 0.1:
            return None
        if drawn < 0.25:
            return 0.5
        if drawn < 0.6:
            return 1.0
        return float(compared.first.startswith("ours"))

    return say


@pytest.mark.parametrize("seed", range(3))
def test_the_numbers_are_those_of_counting_by_hand(tmp_path: Path, seed: int) -> None:
    asked, say = questions(40), leaning(seed)
    judge_file = judged(tmp_path / "j.jsonl", Scripted(say), asked)
    (found,) = judge_summaries(judge_file.records)
    shares, first, second, unread, half, alike, twice = [], 0, 0, 0, 0, 0, 0
    for n in range(40):
        ours, theirs = f"ours {n}", f"theirs {n}"
        one, other = say(Compared(f"prompt {n}", ours, theirs)), say(Compared(f"prompt {n}", theirs, ours))
        first += (one == 1) + (other == 1)
        second += (one == 0) + (other == 0)
        unread += (one is None) + (other is None)
        if one is None or other is None:
            half += 1
            continue
        twice += 1
        alike += one == 1 - other
        shares.append(1.0 if (one, other) == (1, 0) else 0.0 if (one, other) == (0, 1) else 0.5)
    (rate,) = found.rates
    sign = 1 if rate.system == "ours" else -1
    wins, losses = shares.count(1.0), shares.count(0.0)
    assert (rate.tally.wins, rate.tally.losses)[::sign] == (wins, losses)
    assert rate.rate.value == pytest.approx(np.mean(shares) if sign == 1 else 1 - np.mean(shares))
    tail = sum(comb(wins + losses, k) for k in range(min(wins, losses) + 1)) / 2 ** (wins + losses)
    assert rate.p == pytest.approx(min(1.0, 2 * tail))
    drawn = np.random.default_rng(0).integers(len(shares), size=(2000, len(shares)))
    means = np.array(shares)[drawn].mean(1)
    low, high = np.quantile(means if sign == 1 else 1 - means, [0.025, 0.975])
    assert (rate.rate.low, rate.rate.high) == (pytest.approx(low, abs=0.02), pytest.approx(high, abs=0.02))
    assert found.position is not None
    assert (found.position.first, found.position.second) == (first, second)
    assert (found.num_unreadable, found.num_half, found.num_pairs) == (unread, half, len(shares))
    assert (found.position.num_twice, found.position.consistent) == (twice, pytest.approx(alike / twice))
    held = hold(judged_from(iter_rows((str(tmp_path / "j.jsonl"),), quiet)), orders=10)
    assert {each.name for each in held.standings} == {"ours", "theirs"}
    assert (held.position.first, held.position.second) == (first, second), "the tournament reads the same file"


def test_a_judge_that_only_looks_at_the_place_gives_no_winner_and_that_is_told(tmp_path: Path) -> None:
    (found,) = judge_summaries(judged(tmp_path / "j.jsonl", Scripted(lambda compared: 1.0), questions(12)).records)
    (rate,) = found.rates
    assert (rate.tally.ties, rate.p, rate.verdict) == (12, 1.0, "unclear")
    assert found.first_share is not None
    assert found.first_share.value == 1.0
    assert "more than chance explains" in "\n".join(found.as_lines())


def test_each_of_many_pairs_of_systems_must_be_the_less_likely_by_chance() -> None:
    rate = WinRate("ours", "theirs", Tally(), 40, Estimate(0.7, 0.55, 0.85), 0.02)
    assert rate.verdict == "better"
    assert replace(rate, num_tests=3).verdict == "unclear"
    assert replace(rate, num_tests=3, p=0.01).verdict == "better"


def test_a_judge_of_three_systems_is_asked_about_three_pairs(tmp_path: Path) -> None:
    asked = questions(12, ("ours", "theirs", "others"))
    file = judged(tmp_path / "j.jsonl", Scripted(lambda compared: 1.0), asked, per_prompt=3)
    found = judge_summaries(file.records)[0]
    assert [each.num_tests for each in found.rates] == [3, 3, 3]
    assert found.as_json()["rates"][0]["num_tests"] == 3


def test_one_that_is_sure_both_times_gives_a_winner_with_a_width(tmp_path: Path) -> None:
    say = lambda compared: float(compared.first.startswith("theirs"))  # noqa: E731
    file = judged(tmp_path / "j.jsonl", Scripted(say), questions(12))
    (rate,) = judge_summaries(file.records)[0].rates
    assert (rate.system, rate.rate.value, rate.verdict) == ("ours", 0.0, "worse")
    assert rate.rate.high > 0.2, "twelve prompts are not certainty"
    rows = preference_rows(settled(file.records))
    assert len(rows.rows) == 12, "both orders make one row"
    assert all(row["chosen"].startswith("theirs") for row in rows.rows)


def test_pairs_of_one_prompt_count_as_one_prompt(tmp_path: Path) -> None:
    asked = questions(10, ("a", "b", "c"))
    judge = Scripted(lambda compared: float(compared.first < compared.second))
    (found,) = judge_summaries(judged(tmp_path / "j.jsonl", judge, asked, per_prompt=3).records)
    assert sorted((rate.system, rate.against, rate.num_prompts) for rate in found.rates) == [
        ("a", "b", 10), ("a", "c", 10), ("b", "c", 10)
    ]  # fmt: skip
    assert {rate.rate.value for rate in found.rates} == {1.0}


def test_nothing_is_judged_twice_even_after_a_judge_broke_off(tmp_path: Path) -> None:
    left = iter(range(5))

    def breaks(compared: Compared) -> float | None:
        if next(left, None) is None:
            raise NetworkError("The judge went away.")
        return 1.0

    asked, path = questions(6), tmp_path / "j.jsonl"
    with pytest.raises(NetworkError):
        judged(path, Scripted(breaks), asked)
    lines = path.read_text().splitlines()
    assert len(lines) == 5
    path.write_text("\n".join(lines) + "\n" + lines[0][:50])  # and the process died while it wrote
    judge = Scripted(lambda compared: 0.0)
    file = judged(path, judge, asked)
    assert len(judge.asked) == 7
    assert len({(each.pair.id, each.shown[0].id) for each in file.records}) == len(file.records) == 12
    again = Scripted(lambda compared: 0.0)
    judged(path, again, asked)
    assert again.asked == []


def test_other_settings_or_other_answers_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    judged(path, Scripted(lambda compared: 1.0), questions(2))
    before = path.read_bytes()
    with pytest.raises(RunMismatch, match="other settings"):
        judged(path, Scripted(lambda compared: 1.0, guideline="Be kind."), questions(2))
    with pytest.raises(RunMismatch, match="other pairs"):
        judged(path, Scripted(lambda compared: 1.0), questions(1))
    assert path.read_bytes() == before
    judged(path, Scripted(lambda compared: 1.0, name="another", guideline="Be kind."), questions(2))
    assert [each.judge for each in judge_summaries(JudgmentFile.opened(path, quiet).records)] == ["judge", "another"]


def test_too_many_verdicts_that_cannot_be_read_end_it_early_and_stay_an_error(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    judge = Scripted(lambda compared: None)
    with pytest.raises(JudgeFault, match=r"3 of 20 verdicts of judge cannot be read; at most 2 may be.*'words'"):
        judged(path, judge, questions(10), most_unreadable=0.1)
    again = Scripted(lambda compared: 1.0)
    with pytest.raises(JudgeFault):
        judged(path, again, questions(10), most_unreadable=0.1)
    assert again.asked == [], "what cannot be good any more is not paid for"
    judged(path, again, questions(10), most_unreadable=0.2)
    (found,) = judge_summaries(JudgmentFile.opened(path, quiet).records)
    assert (found.num_unreadable, found.num_pairs + found.num_half) == (3, 10)


def test_a_judge_of_single_answers_is_asked_once_a_pair_and_has_no_place(tmp_path: Path) -> None:
    judge = Scripted(lambda compared: float(compared.first > compared.second), orders=1)
    (found,) = judge_summaries(judged(tmp_path / "j.jsonl", judge, questions(12)).records)
    assert len(judge.asked) == found.num_pairs == 12
    assert found.position is None
    assert {found.rates[0].rate.value, judge.orders} <= {0.0, 1.0}


@pytest.mark.parametrize(
    ("said", "outcome"),
    [
        ("A is short.\nB", 0.0),
        ("**A**", 1.0),
        ("Verdict: [[B]]\n\n", 0.0),
        ("The better answer is A.", 1.0),
        ("It is a TIE", 0.5),
        ("", None),
        ("Both are fine", None),
        ("A\nbut I am not sure about it", None),
    ],
)
def test_a_verdict_is_what_the_last_line_ends_with(said: str, outcome: float | None) -> None:
    assert outcome_in(said) == outcome


def test_a_judge_sees_both_answers_in_their_order_and_the_guideline_but_no_names() -> None:
    chats = []

    def ask(asked: Sequence[Any]) -> list[tuple[int, Reply]]:
        chats.extend(asked)
        return [(0, Reply("No.", refused=True)), (1, Reply("B"))]

    judge = TextJudge("m", ask, {"kind": "model"}, "Shorter is better.")
    prompt = [{"role": "user", "content": "The total?"}]
    found = dict(judge.verdicts([Compared(prompt, "one", "two"), Compared(prompt, "two", "one")]))
    assert (found[0].outcome, found[0].refused, found[1].outcome) == (None, True, 0.0)
    (message,) = chats[0]
    places = [message.content.index(part) for part in ("[user] The total?", "\none\n", "\ntwo\n")]
    assert places == sorted(places)
    assert "Shorter is better." in message.content
    assert asked_about(Compared("q", "x", "y"), None)[0].content.count("Shorter") == 0


def test_records_of_judges_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    written = judged(path, Scripted(lambda compared: 0.5), questions(2)).records
    assert JudgmentFile.opened(path, quiet).records == written
    values = json.loads(path.read_text().splitlines()[0])
    assert values["said"] == "words"
    path.write_text(json.dumps({**values, "judge": {"orders": 3}}) + "\n")
    with pytest.raises(Exception, match="line 1, field 'judge'"):
        JudgmentFile.opened(path, quiet)


def test_a_pair_is_the_same_in_both_orders() -> None:
    pair = Pair("q", (Response("1", "x", "a"), Response("2", "y", "b")))
    assert {pair.shown(seed) for seed in range(20)} == {pair.responses, pair.responses[::-1]}
