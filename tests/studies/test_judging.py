"""Answers to be judged: of rollouts, and of models that are asked once and no more."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from luthier.api import load_plain
from luthier.errors import DataError, NotFound, RunMismatch, UsageError
from luthier.evaluation.judged.blind import Asked
from luthier.generation.settings import Sampling
from luthier.prediction.text_model import TextModel
from luthier.rlhf.samples import Sample
from luthier.studies.judging import Answering, questions_for, questions_of_run

PROMPTS: list[Asked] = ["Where is my parcel?", [{"role": "user", "content": "The total?"}]]


def quiet(sentence: str) -> None:
    """Hear nothing."""


def sample(group: int, text: str, reward: float | None, version: int) -> Sample:
    return Sample(group, group, f"question {group}", text, (1, 2), "stop", version, np.zeros(2, np.float32), reward)


def test_the_answers_of_a_rollout_are_those_to_one_prompt_with_their_rewards(tmp_path: Path) -> None:
    folder = tmp_path / "rl-1" / "rollouts"
    folder.mkdir(parents=True)
    for number, version in enumerate((0, 4)):
        samples = [sample(g, f"{g} {i} of {number}", [0.5, None][i], version) for g in range(2) for i in range(2)]
        (folder / f"{number:06d}.jsonl").write_text("".join(each.line() + "\n" for each in samples))
    questions = questions_of_run(tmp_path / "rl-1")
    assert [each.prompt for each in questions] == ["question 0", "question 1"] * 2
    assert [each.text for each in questions[3].responses] == ["1 0 of 1", "1 1 of 1"]
    assert {each.model for each in questions[3].responses} == {"rl-1 at step 4"}
    assert [each.reward for each in questions[0].responses] == [0.5, None]
    assert questions_of_run(tmp_path / "rl-1", limit=3) == questions[:3]
    (folder / "000002.jsonl").write_text("{}")
    with pytest.raises(DataError, match="no rollout"):
        questions_of_run(tmp_path / "rl-1")
    with pytest.raises(NotFound, match="holds no rollouts"):
        questions_of_run(tmp_path)


class Loading:
    """Loads the tiny model under any name, and notes what for."""

    def __init__(self, folder: Path, sampling: Sampling) -> None:
        self.folder, self.loaded = folder, list[str]()
        self.told: list[tuple[str, int, int]] = []
        self.asking = Answering(self._load, sampling, lambda *how_far: self.told.append(how_far), quiet)

    def _load(self, name: str) -> TextModel:
        self.loaded.append(name)
        return load_plain(str(self.folder), quiet)


def test_what_a_model_answered_is_kept_and_not_generated_again(tmp_path: Path, tiny_model: Path) -> None:
    kept, drawn = tmp_path / "judgments.answers.jsonl", Sampling(max_new_tokens=4, temperature=1.0)
    first = Loading(tiny_model, drawn)
    questions = questions_for(["a", "b"], PROMPTS, kept, first.asking)
    assert first.loaded == ["a", "b"]
    assert first.told[-1] == ("answers of b", 2, 2)
    assert [each.model for each in questions[1].responses] == ["a", "b"]
    again = Loading(tiny_model, drawn)
    assert questions_for(["a", "b"], PROMPTS, kept, again.asking) == questions
    assert again.loaded == []
    lines = kept.read_text().splitlines(keepends=True)
    kept.write_text("".join(lines[:3]) + lines[3][:30])  # it died while the last was written
    third = Loading(tiny_model, drawn)
    assert questions_for(["a", "b"], PROMPTS, kept, third.asking) == questions, "the same draws by the prompt's place"
    assert third.loaded == ["b"]
    assert third.told == [("answers of b", 1, 1)]
    assert json.loads(lines[0])["sampling"]["max_new_tokens"] == 4


def test_answers_that_were_drawn_otherwise_are_not_taken_for_these(tmp_path: Path, tiny_model: Path) -> None:
    kept = tmp_path / "judgments.answers.jsonl"
    questions_for(["a", "b"], PROMPTS[:1], kept, Loading(tiny_model, Sampling(max_new_tokens=2)).asking)
    with pytest.raises(RunMismatch, match="other settings"):
        questions_for(["a", "b"], PROMPTS[:1], kept, Loading(tiny_model, Sampling(max_new_tokens=3)).asking)
    with pytest.raises(UsageError, match="a is named twice"):
        questions_for(["a", "a"], PROMPTS, kept, Loading(tiny_model, Sampling()).asking)
