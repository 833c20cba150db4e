"""What the rollouts of a run show in its report: answers from the first to the last, and the signs that were told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_model import write_tiny_model
from tiny_runs import begin, recipe_values, write_rows

from luthier.evaluation.report import NOTHING
from luthier.rlhf.kept import FOLDER, read_rollout, write_rollout
from luthier.rlhf.samples import Sample
from luthier.rlhf.told import signs_of, told_of_rollouts

ENDS_OF_LINES = "a\u2028b\u2029c\x85d\x0be\x1cf\r\ng"


def sample(version: int, reward: float | None, text: str = "answer") -> Sample:
    return Sample(0, 0, "asked", text, (1, 2), "stop", version, np.zeros(2, np.float32), reward)


def test_answers_may_hold_any_end_of_a_line(tmp_path: Path) -> None:
    """Python sees ends of lines where JSON does not write any."""
    write_rollout(tmp_path / "0.jsonl", [sample(0, 1.0, ENDS_OF_LINES), sample(0, 2.0)])
    read = read_rollout(tmp_path / "0.jsonl")
    assert read is not None
    assert [each.text for each in read] == [ENDS_OF_LINES, "answer"]


def test_a_few_rollouts_from_the_first_to_the_last_show_their_best_middle_and_worst_answer(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    for number in range(10):
        samples = [sample(number, float(reward), f"worth {reward}") for reward in (3, 1, 5, 2, 4)]
        write_rollout(tmp_path / FOLDER / f"{number:06}.jsonl", [*samples, sample(number, None)])
    (table,) = told_of_rollouts(tmp_path).tables
    head, *rows = table.rows
    assert head == ["step", "", "reward", "prompt", "answer"]
    assert [row[0] for row in rows] == [step for step in ("0", "3", "6", "9") for _ in range(3)]
    assert [row[1:] for row in rows[:3]] == [
        ["best", "5", "asked", "worth 5"],
        ["middle", "3", "asked", "worth 3"],
        ["worst", "1", "asked", "worth 1"],
    ]


def test_long_answers_show_how_they_begin_and_end(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    write_rollout(tmp_path / FOLDER / "000000.jsonl", [sample(0, 1.0, "begins " + "x" * 5000 + " ends")])
    (table,) = told_of_rollouts(tmp_path).tables
    shown = table.rows[1][4]
    assert shown.startswith("begins x")
    assert shown.endswith("x ends")
    assert len(shown) < 300


def test_where_nothing_was_written_nothing_is_told(tmp_path: Path) -> None:
    assert told_of_rollouts(tmp_path) == NOTHING


def test_a_run_reports_its_answers_and_its_signs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A policy that is soon further from its reference than it may be."""
    monkeypatch.setattr("luthier.rlhf.diagnosis._MOST_NATS", -1e9)
    monkeypatch.setattr("luthier.rlhf.diagnosis.WINDOW", 1)
    write_tiny_model(tmp_path / "model")
    training = {"steps": 3, "rows_per_step": 2, "tokens_per_micro_batch": 256}
    values = recipe_values(tmp_path / "model", write_rows(tmp_path / "rows.jsonl", 6), training=training)
    rewards = [{"grader": {"type": "length", "most": 4, "margin": 4}}]
    objective = {"kind": "rloo", "rewards": rewards, "max_new_tokens": 6, "num_answers": 2}
    begin({**values, "objective": objective}, tmp_path / "run")
    (sign,) = signs_of(tmp_path / "run")
    assert "nats from the reference" in sign
    for page in ("report.md", "report.html"):
        text = (tmp_path / "run" / page).read_text("utf-8")
        assert sign in text, page
        assert "Answers over time" in text, page
        assert text.count("middle") >= 3, page
