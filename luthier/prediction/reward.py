"""A model that scores answers.

It may stand beside others on one frozen base: its adapter bears a name of its own there, and its head, which that base lacks, comes
with it (`ScoreHead`).
Shapes: N answers, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import ClassVar

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from luthier.data.apart import laid_apart
from luthier.errors import DataError, UsageError
from luthier.models.outputs import Outputs
from luthier.objectives.reward import Reward, scored_example
from luthier.ops.workers import Workers
from luthier.prediction.contract import Reader, Told, check_whole
from luthier.prediction.passes import Passes, Said, check_fits, class_logits, said_of_each
from luthier.prediction.scale import Scale, scale_of
from luthier.prediction.text_model import message_of
from luthier.types import Answered, Completion, Conversation, Example, Message, Origin, Rendered

Scorable = Answered | Sequence[Message | Mapping[str, str]]
"""What is scored: a prompt and its answer, or messages of which the last is the answer."""


@dataclass(frozen=True)
class ScoreHead:
    """A reward adapter's own head, for a base that has none: y = x · w + c. weight_D: (D,). bias: 0 where there is none."""

    weight_D: Tensor
    bias: float = 0.0

    def __call__(self, outputs: Outputs) -> Said:
        """The scores of the answers, fp32, shape (N, 1), and the row that each is of."""
        hidden_ND = outputs.hidden_ND
        score_N1 = F.linear(hidden_ND, self.weight_D[None].to(hidden_ND.dtype)).float() + self.bias
        return score_N1, outputs.targets.row_N


@dataclass(frozen=True)
class RewardScorer(Reader):
    """A model that scores answers: its weights, how texts become tokens, the adapter to use, and the scale of its scores.

    own_head: where the weights have no head for scores, the adapter's. tokens_at_once: how many are computed together.
    """

    does: ClassVar[str] = "scores answers"
    asking: ClassVar[str] = "--prompt QUESTION --option ANSWER --option ANOTHER"
    chooses: ClassVar[bool] = True

    scale: Scale = field(default_factory=Scale)
    own_head: ScoreHead | None = None
    tokens_at_once: int = 4096

    def scores(self, conversations: Sequence[Scorable]) -> list[float]:
        """The scores of answers, each by itself, under the model's scale: the higher, the better.

        Neighbours that answer the same prompt compute it once. Raises: DataError for one that has no answer, or is beyond the
        model's context.
        """
        return self.scale.told(self.raw_scores(conversations))

    def raw_scores(self, conversations: Sequence[Scorable]) -> list[float]:
        """The same as the head gives them, whose zero and unit mean nothing."""
        rendered = []
        for index, each in enumerate(conversations):
            origin = Origin("answer", index + 1)
            rendered.append(self.renderer.render_judged(_answered(each, origin), origin))
        return self._scored(rendered, [_asked(each) for each in conversations])

    def normalised_on(self, conversations: Sequence[Scorable]) -> RewardScorer:
        """The same under the scale that gives these answers mean 0 and deviation 1: those of the policy that is to be judged, say.

        `write_scale` keeps it. Raises: UsageError where their scores do not differ; DataError as `scores`.
        """
        return replace(self, scale=scale_of(self.raw_scores(conversations), self.scale.clip))

    def scores_of_tokens(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> list[float]:
        """The scores of answers as the tokens that were drawn, each behind its prompt's: nothing is tokenized again.

        Raises: UsageError for a model that reads prompt and answer as two texts; DataError as `scores`.
        """
        if self.renderer.pooled == "first":
            raise UsageError(
                "An encoder reads a prompt and its answer as two texts of its own tokens.", "Give it texts: scores()."
            )
        rendered = []
        for prompt, answer in zip(prompts, answers, strict=True):
            tokens_T = np.array([*prompt, *answer], dtype=np.int64)
            is_own_T = np.arange(len(tokens_T)) >= len(prompt)
            rendered.append(Rendered(tokens_T, is_own_T.astype(np.float32)))
        return self.scale.told(self._scored(rendered, [tuple(prompt) for prompt in prompts]))

    def tell(self, texts: Sequence[str], options: Sequence[str] = ()) -> Told:
        """The score of every option as an answer to each text."""
        if not options:
            raise UsageError("A model that scores answers needs one.", "Give each with an --option of its own.")
        for text in (*texts, *options):
            check_whole(text)
        scores = self.scores([Completion(text, option) for text in texts for option in options])
        by_text = [scores[at : at + len(options)] for at in range(0, len(scores), len(options))]
        lines = [f"{score:.6g}  {option}" for each in by_text for option, score in zip(options, each, strict=True)]
        answers = tuple(
            {"scores": [{"option": option, "score": score} for option, score in zip(options, each, strict=True)]}
            for each in by_text
        )
        return Told(tuple(lines), answers)

    def _scored(self, rendered: Sequence[Rendered], asked: Sequence[object]) -> list[float]:
        """The raw scores of answers; asked: what each answers, so that neighbours that answer the same share it."""
        examples = [
            scored_example(texts, index, Origin("answer", index + 1))
            for index, texts in enumerate(_together(rendered, asked, self.tokens_at_once))
        ]
        if self.language_model.layout == "bucketed":
            examples = [laid_apart(example) for example in examples]
        return [float(score) for score_K1 in self.said(examples) for score in score_K1[:, 0]]

    def said(self, examples: Sequence[Example], passes: Passes | None = None) -> list[Tensor]:
        """The raw scores of each example's answers, each (K, 1). Raises: DataError for one beyond the model's context."""
        model = self.language_model
        check_fits(model, self.adapter, examples)
        say = class_logits if self.own_head is None else self.own_head
        if passes is not None:
            return said_of_each(model, self.adapter, examples, say, passes, "scores")
        with Workers(1) as workers:
            return said_of_each(model, self.adapter, examples, say, Passes(workers, self.tokens_at_once), "scores")


def settled_scale(
    scorer: RewardScorer, objective: Reward, rows: Sequence[Example], passes: Passes, announce: Callable[[str], None]
) -> Scale:
    """The scale that the objective asks for, from what the model gives these rows' answers."""
    if objective.normalise == "none":
        return Scale(clip=objective.clip)
    announce(f"The scores of {len(rows)} rows give the scale that is kept with the model (objective.normalise).")
    counted = [
        score
        for score_K1, row in zip(scorer.said(rows, passes), rows, strict=True)
        for score, place in zip(score_K1[:, 0].tolist(), row.token_N.tolist(), strict=True)
        if objective.normalise == "answers" or place == 0
    ]
    try:
        return scale_of(counted, objective.clip)
    except UsageError as error:
        announce(f"{error.found} The scores are told as they are.")
        return Scale(clip=objective.clip)


def _together(rendered: Sequence[Rendered], asked: Sequence[object], longest: int) -> Iterator[list[Rendered]]:
    """Neighbours that answer the same, as many as so many tokens hold."""
    for _, group in groupby(zip(rendered, asked, strict=True), key=lambda each: each[1]):
        held: list[Rendered] = []
        for text, _ in group:
            if held and sum(len(each.tokens_T) for each in (*held, text)) > longest:
                yield held
                held = []
            held.append(text)
        yield held


def _answered(conversation: Scorable, origin: Origin) -> Answered:
    """What is scored as a record. Raises: DataError where no answer stands at the end."""
    if isinstance(conversation, Completion):
        return conversation
    chat = (
        conversation if isinstance(conversation, Conversation) else Conversation(tuple(map(message_of, conversation)))
    )
    if len(chat.messages) < 2 or chat.messages[-1].role != "assistant":
        raise DataError(
            "What is to be scored does not end with an answer of the assistant to something.",
            "Give a question and its answer.",
            file=origin.file,
            line=origin.line,
        )
    return chat


def _asked(conversation: Scorable) -> object:
    """What an answer answers."""
    if isinstance(conversation, Completion):
        return conversation.prompt
    if isinstance(conversation, Conversation):
        return conversation.messages[:-1], str(conversation.tools)
    return tuple(map(message_of, conversation[:-1]))
