"""Answers to judge that are in no file: the rollouts of a run, and what models are asked now; and a model here as a judge."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from luthier.data.formats.table import fault
from luthier.data.reading.content import content_of
from luthier.data.reading.jsonl import read_jsonl
from luthier.errors import DataError, NotFound, RunMismatch, UsageError
from luthier.evaluation.judged.blind import Asked, Question, Response, prompt_key
from luthier.evaluation.judged.verdicts import AskJudge, Reply
from luthier.generation.engine import generate
from luthier.generation.settings import Sampling
from luthier.prediction.passes import Progress
from luthier.prediction.text_model import TextModel
from luthier.rlhf.kept import FOLDER, read_rollout
from luthier.rlhf.samples import Sample, by_group
from luthier.store.files import append_line
from luthier.types import Message

Announce = Callable[[str], None]

_AT_ONCE = 64
"""Prompts that are answered before their answers are written down."""


# ── a run's rollouts ────────────────────────────────────────────────────────────────────────────────────────────────


def questions_of_run(run: Path, limit: int | None = None) -> list[Question]:
    """The prompts that a run's policy answered, each with its answers and their rewards; one prompt may come back later.

    Rollouts keep of a chat its last message alone, so that is the prompt.

    Raises: NotFound, where the run has no rollouts; DataError for those that cannot be read.
    """
    files = sorted((run / FOLDER).glob("*.jsonl"))
    if not files:
        raise NotFound(
            f"The run {run} holds no rollouts: only runs that learn from rewards write answers.",
            "To judge what it answers now: 'luthier judge RUN OTHER --prompts FILE'.",
        )
    groups = [group for file in files for group in by_group(_rollout(file))]
    return [_of_group(run.name, group) for group in groups[:limit]]


def _rollout(file: Path) -> Sequence[Sample]:
    try:
        return read_rollout(file) or ()
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"this is no rollout: {error}.", "Remove the file, or restore it.", file=str(file)) from error


def _of_group(run: str, group: Sequence[Sample]) -> Question:
    model = f"{run} at step {group[0].version}"
    answers = (Response(str(i), each.text, model, each.reward) for i, each in enumerate(group, start=1))
    return Question(group[0].prompt, tuple(answers))


# ── a judge ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def asking_model(judge: TextModel, sampling: Sampling) -> AskJudge:
    """A model here as a judge is asked: as plain text, if it has no chat template."""

    def ask(chats: Sequence[tuple[Message, ...]]) -> Iterator[tuple[int, Reply]]:
        is_plain = judge.renderer.chat is None
        asked = ["\n\n".join(each.content for each in chat) if is_plain else chat for chat in chats]
        for place, completed in enumerate(judge.complete(asked, sampling)):
            yield place, Reply(completed.text)

    return ask


# ── models ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Answering:
    """How models are asked: who loads one by its name, how answers are drawn, and who is told how far it is."""

    load: Callable[[str], TextModel]
    sampling: Sampling
    progress: Progress
    announce: Announce


def questions_for(models: Sequence[str], prompts: Sequence[Asked], kept: Path, asking: Answering) -> list[Question]:
    """The prompts with each model's answer. What is in the file `kept` is taken from there, and what is new is added to it.

    Raises: UsageError for a model that is named twice; RunMismatch, if what is kept was drawn otherwise; what loading and
    generation raise.
    """
    if twice := next((name for name in models if models.count(name) > 1), None):
        raise UsageError(f"{twice} is named twice.", "Name two models that differ.")
    answers = _kept(kept, asking)
    for name in models:
        missing = [(place, prompt) for place, prompt in enumerate(prompts) if (name, prompt_key(prompt)) not in answers]
        if missing:
            _write(name, missing, kept, asking, answers)
    cut = sum(answers[name, prompt_key(prompt)].is_cut for name in models for prompt in prompts)
    if cut:
        asking.announce(f"{cut:,} answers end where their most tokens were reached (--max-new-tokens).")
    return [
        Question(
            prompt,
            tuple(
                Response(str(i), answers[name, prompt_key(prompt)].text, name) for i, name in enumerate(models, start=1)
            ),
        )
        for prompt in prompts
    ]


@dataclass(frozen=True)
class _Answer:
    text: str
    is_cut: bool


_Answers = dict[tuple[str, str], _Answer]
"""By the model's name and the prompt's key."""


def _write(name: str, missing: Sequence[tuple[int, Asked]], kept: Path, asking: Answering, answers: _Answers) -> None:
    """Have a model answer prompts, and write its answers down, some at a time. missing: with their places among all."""
    model = asking.load(name)
    seed = asking.sampling.seed
    for start in range(0, len(missing), _AT_ONCE):
        part = missing[start : start + _AT_ONCE]
        requests = [
            model.request(prompt, asking.sampling.model_copy(update={"seed": (seed + place) % 2**63}))
            for place, prompt in part
        ]

        def told(done: int, total: int, start: int = start) -> None:
            asking.progress(f"answers of {name}", start + done, len(missing))

        completed = generate(model.language_model, requests, progress=told)
        for (_, prompt), answer in zip(part, completed, strict=True):
            line = {
                "model": name,
                "prompt": prompt,
                "text": answer.text,
                "finish_reason": answer.finish_reason,
                "sampling": asking.sampling.model_dump(mode="json"),
            }
            append_line(kept, json.dumps(line, ensure_ascii=False))
            answers[name, prompt_key(prompt)] = _Answer(answer.text, answer.finish_reason == "length")


def _kept(file: Path, asking: Answering) -> _Answers:
    """The answers in a file. A line that was cut off as it was written does not count."""
    if not file.exists() or not file.stat().st_size:
        return {}
    faults: list[DataError] = []
    answers: _Answers = {}
    sampling = asking.sampling.model_dump(mode="json")
    for row in read_jsonl(content_of(file, str(file), faults.append), asking.announce):
        values = row.values
        try:
            key = values["model"], prompt_key(values["prompt"])
            answer = _Answer(values["text"], values["finish_reason"] == "length")
            drawn = values["sampling"]
        except KeyError as error:
            raise fault(
                row, str(error), "this is no answer that was kept.", "Remove the file, or restore it."
            ) from error
        if drawn != sampling:
            raise RunMismatch(
                "the answers in it were drawn with other settings than these.",
                "Go on with the options that it began with, or choose another file with --out.",
                file=str(file),
            )
        answers[key] = answer
    if faults:
        asking.announce(f"{file}: {len(faults)} lines cannot be read; what they held is generated again.")
    return answers
