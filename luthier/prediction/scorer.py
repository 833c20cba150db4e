"""A model that gives texts numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from luthier.objectives import Regression
from luthier.prediction.contract import Reader, Told, check_no_options, check_whole
from luthier.prediction.passes import class_logits
from luthier.types import Scored


@dataclass(frozen=True)
class Scorer(Reader):
    """A model that gives texts numbers: its weights, how texts become tokens, and the adapter to use."""

    does: ClassVar[str] = "gives texts numbers"

    def score(self, texts: Sequence[str | tuple[str, str]]) -> list[float]:
        """The numbers of several texts, or pairs of texts. Raises DataError for one beyond the model's context."""
        pairs = [(text, None) if isinstance(text, str) else text for text in texts]
        for text in (text for pair in pairs for text in pair if text is not None):
            check_whole(text)
        records = [Scored(first, second, 0.0) for first, second in pairs]
        said = self._said(self._examples(Regression(), records), class_logits)
        return [float(logits_1C[0, 0]) for logits_1C in said]

    def tell(self, texts: Sequence[str], options: Sequence[str] = ()) -> Told:
        """Each text's number."""
        check_no_options(options, self.does)
        scores = self.score(texts)
        return Told(tuple(f"{score:.6g}" for score in scores), tuple({"score": score} for score in scores))
