"""Best-of-n: of several answers that a model draws to a prompt, the one that a reward finds best.

Stiennon et al. 2020, https://arxiv.org/abs/2009.01325, section 4.1; Nakano et al. 2021, https://arxiv.org/abs/2112.09332, section 3.2.
Nothing is trained: n times the computing of one answer, for what learning from the reward may come to (`evaluation.best_of_n` says
what that would be for each n).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from luthier.errors import NoReward, NotFound, UsageError
from luthier.evaluation.grading import Aids
from luthier.generation.requests import Completed
from luthier.generation.settings import Sampling
from luthier.prediction.text_model import Prompt, TextModel, message_of
from luthier.rewarded import models_of
from luthier.rlhf.rewards import Reward, Rewards
from luthier.rlhf.worth import Answer
from luthier.store.runs import find_run
from luthier.types import Conversation

Announce = Callable[[str], None]


@dataclass(frozen=True)
class Best:
    """The best answer to a prompt, its reward, and the rewards of all that were drawn; None for one that has none."""

    answer: Completed
    reward: float
    rewards: tuple[float | None, ...]


def reward_named(name: str, runs: Path) -> Reward:
    """The reward that a user names: a Python file with `reward(prompts, answers, rows)`, or the run of a reward model.

    runs: where runs are looked for by their names. Raises: NotFound where there is none.
    """
    if Path(name).suffix != ".py":
        return Reward(model=str(find_run(name, runs)))
    if not Path(name).is_file():
        raise NotFound(f"There is no file {name}.", "Name a file that defines reward(prompts, answers, rows).")
    return Reward(function=name)


def best_answers(
    model: TextModel,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    num_answers: int,
    reward: Reward,
    announce: Announce,
    *,
    top_logprobs: int | None = None,
    cache_gb: float | None = None,
) -> list[Best]:
    """The best of `num_answers` answers to each prompt; of several as good, the first.

    The other arguments are those of `TextModel.complete`.
    Raises: UsageError where all answers would be the same; RewardFault and NoReward, as rewards do, the latter too where no answer
    to some prompt has a reward; as `load_reward`, for a run that is no reward model.
    """
    if num_answers < 2 or sampling.temperature == 0:
        raise UsageError(
            "There is nothing to choose from: that takes several answers, drawn with a temperature above 0.",
            "Ask for two answers or more (--answers 8), with a temperature such as 1 (--temperature 1).",
        )
    models = models_of((reward,), model.language_model, announce)
    drawn = model.complete(prompts, sampling, num_answers=num_answers, top_logprobs=top_logprobs, cache_gb=cache_gb)
    read = [(prompt, model.request(prompt, sampling).prompt) for prompt in prompts]
    asked = [_answer(*read[index // num_answers], answer) for index, answer in enumerate(drawn)]
    with Rewards((reward,), Aids(), models=models, announce=announce) as rewards:
        worths = [worth.reward for worth in rewards(asked)]
    return [
        _best(drawn[start : start + num_answers], worths[start : start + num_answers])
        for start in range(0, len(drawn), num_answers)
    ]


def _best(answers: Sequence[Completed], worths: Sequence[float | None]) -> Best:
    known = [(worth, -place) for place, worth in enumerate(worths) if worth is not None]
    if not known:
        raise NoReward(
            f"None of the {len(answers)} answers to a prompt has a reward, such as {answers[0].text[:60]!r}.",
            "See what the reward gives for it; a reward model reads no empty answers.",
        )
    worth, place = max(known)
    return Best(answers[-place], worth, tuple(worths))


def _answer(prompt: Prompt, tokens: tuple[int, ...], answer: Completed) -> Answer:
    """An answer as rewards read it, to a prompt in words and in tokens; there is no row behind it."""
    if isinstance(prompt, str):
        return Answer(prompt, answer.text, {}, prompt, tokens, answer.tokens)
    asked = Conversation(tuple(message_of(each) for each in prompt))
    return Answer(asked.messages[-1].content, answer.text, {}, asked, tokens, answer.tokens)
