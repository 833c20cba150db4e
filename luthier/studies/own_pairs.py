"""Comparisons of answers that a model draws itself: the best and the worst of several to each prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from luthier.generation.engine import generate
from luthier.generation.requests import Completed
from luthier.generation.settings import Sampling
from luthier.prediction.passes import Progress
from luthier.prediction.text_model import TextModel
from luthier.rlhf.parts import Prompts, requests_of
from luthier.rlhf.rewards import Reward
from luthier.types import Conversation, Settings, fault_at


class Sampled(Settings):
    """Comparisons of answers that the tuned model draws."""

    prompts: str = Field(description="Rows whose prompts are answered.")
    num_prompts: int | None = Field(None, ge=1, description="Only the first so many; unset: all.")
    num_answers: int = Field(4, ge=2, description="How many answers to each; the best and the worst become a pair.")
    temperature: float = Field(1.0, gt=0, description="As generation has it.")
    max_new_tokens: int = Field(128, ge=1, description="Most tokens of an answer.")
    by: Literal["rewards", "judge", "person"] = Field(
        "rewards", description="Who tells them apart; a person does with 'luthier judge'."
    )
    rewards: tuple[Reward, ...] = Field((), description="What an answer is worth, with by: rewards.")
    judge: str | None = Field(
        None, description="The model that judges, with by: judge: a run that writes, or a model as a recipe names it."
    )
    guideline: str | None = Field(None, description="What the judge is to judge by.")
    pairs_per_prompt: int = Field(1, ge=1, description="Most pairs of a prompt's answers that the judge compares.")

    @model_validator(mode="after")
    def _told_apart(self) -> Self:
        if (self.by == "rewards") != bool(self.rewards):
            raise fault_at("pairs.rewards", f"by: {self.by} {'needs' if self.by == 'rewards' else 'has no'} rewards.")
        if (self.by == "judge") != (self.judge is not None):
            raise fault_at("pairs.judge", f"by: {self.by} {'needs' if self.by == 'judge' else 'has no'} judge.")
        names = [reward.called for reward in self.rewards]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise fault_at("pairs.rewards", f"Two rewards are called {twice!r}; give each a name.")
        return self


def drawn(model: TextModel, prompts: Prompts, wanted: Sampled, seed: int, progress: Progress) -> list[list[Completed]]:
    """The answers to each prompt."""
    sampling = Sampling(temperature=wanted.temperature, max_new_tokens=wanted.max_new_tokens, seed=seed)
    requests = requests_of(prompts.examples, sampling, model.adapter, model.renderer.stop_ids, wanted.num_answers)
    flat = generate(model.language_model, requests, progress=lambda done, total: progress("answers", done, total))
    return [flat[at : at + wanted.num_answers] for at in range(0, len(flat), wanted.num_answers)]


def answer_rows(prompts: Prompts, answers: Sequence[Sequence[Completed]]) -> Iterator[dict[str, Any]]:
    """Each prompt with its answers' texts."""
    for row, own in enumerate(answers):
        asked = prompts.asked[row]
        prompt = [message.as_dict() for message in asked.messages] if isinstance(asked, Conversation) else asked
        yield {"prompt": prompt, "answers": [answer.text for answer in own]}


def best_and_worst(
    rows: Sequence[Mapping[str, Any]], scores: Sequence[float | None], num_answers: int
) -> Iterator[dict[str, Any]]:
    """The best and the worst answer to each prompt, where they are not worth the same."""
    for index, row in enumerate(rows):
        own = scores[index * num_answers : (index + 1) * num_answers]
        known = [
            (score, text) for score, text in zip(own, row["answers"], strict=True) if score is not None and text.strip()
        ]
        if len(known) < 2:
            continue
        best, worst = max(known, key=lambda each: each[0]), min(known, key=lambda each: each[0])
        if best[0] == worst[0] or best[1] == worst[1]:
            continue
        chat = isinstance(row["prompt"], list)
        chosen, rejected = ([{"role": "assistant", "content": text}] if chat else text for _, text in (best, worst))
        yield {"prompt": row["prompt"], "chosen": chosen, "rejected": rejected}
