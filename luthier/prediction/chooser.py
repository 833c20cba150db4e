"""A model that tells which of a question's options is right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from luthier.errors import UsageError
from luthier.objectives import MultipleChoice
from luthier.prediction.contract import Reader, Told, check_whole
from luthier.prediction.passes import class_logits
from luthier.types import Choice


@dataclass(frozen=True)
class Chosen:
    """Which option is taken to be right: its index and its text; and the share of each, which together are 1."""

    index: int
    option: str
    shares: tuple[float, ...]


@dataclass(frozen=True)
class Chooser(Reader):
    """A model that chooses among options: its weights, how texts become tokens, and the adapter to use."""

    does: ClassVar[str] = "chooses among options"
    asking: ClassVar[str] = "--prompt QUESTION --option A --option B"
    chooses: ClassVar[bool] = True

    def choose(self, question: str, options: Sequence[str]) -> Chosen:
        """The option that answers a question. Raises UsageError for fewer than two; DataError for a text that is too long."""
        return self._choose_each([question], options)[0]

    def _choose_each(self, questions: Sequence[str], options: Sequence[str]) -> list[Chosen]:
        if len(options) < 2:
            raise UsageError(
                f"A model that chooses needs two options or more, and there {'is one' if options else 'are none'}.",
                "Give each with an --option of its own.",
            )
        for text in (*questions, *options):
            check_whole(text)
        records = [Choice(question, tuple(options), 0) for question in questions]
        said = self._said(self._examples(MultipleChoice(), records), class_logits)
        shares = [logits_K1[:, 0].softmax(0) for logits_K1 in said]
        indices = [int(share_K.argmax()) for share_K in shares]
        return [
            Chosen(index, options[index], tuple(share_K.tolist()))
            for index, share_K in zip(indices, shares, strict=True)
        ]

    def tell(self, texts: Sequence[str], options: Sequence[str] = ()) -> Told:
        """The option that answers each question, and the share of each."""
        found = self._choose_each(texts, options)
        lines, answers = [], []
        for each in found:
            by_share = sorted(zip(options, each.shares, strict=True), key=lambda item: -item[1])
            lines.append(f"{each.option} ({', '.join(f'{option} {share:.3f}' for option, share in by_share)})")
            of_option = [{"option": option, "share": s} for option, s in zip(options, each.shares, strict=True)]
            answers.append({"index": each.index, "option": each.option, "shares": of_option})
        return Told(tuple(lines), tuple(answers))
