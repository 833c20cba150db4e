"""A model that tells classes apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from luthier.errors import UsageError
from luthier.objectives import Classification
from luthier.prediction.contract import Reader, Told, check_no_options, check_whole
from luthier.prediction.passes import class_logits
from luthier.types import Labelled


@dataclass(frozen=True)
class Classified:
    """The most probable class of a text, and the probability of each class."""

    label: str
    probabilities: dict[str, float]


@dataclass(frozen=True)
class Classifier(Reader):
    """A model that tells classes apart: its weights, how texts become tokens, and the adapter to use."""

    does: ClassVar[str] = "tells classes apart"

    def generate(self, prompt: object, **sampling: Any) -> str:
        """The class of a text. Raises UsageError for messages, and for sampling settings: nothing is drawn."""
        if not isinstance(prompt, str) or sampling:
            raise UsageError(
                "A model that tells classes apart answers to a text, and draws nothing.",
                "Give the text alone, without messages and sampling settings.",
            )
        return self.classify([prompt])[0].label

    def classify(self, texts: Sequence[str | tuple[str, str]]) -> list[Classified]:
        """The classes of several texts, or pairs of texts. Raises DataError for one beyond the model's context."""
        classes = self.language_model.classes
        pairs = [(text, None) if isinstance(text, str) else text for text in texts]
        for text in (text for pair in pairs for text in pair if text is not None):
            check_whole(text)
        records = [Labelled(first, second, classes[0]) for first, second in pairs]
        said = self._said(self._examples(Classification(classes=classes), records), class_logits)
        shares = [logits_1C[0].softmax(-1) for logits_1C in said]
        return [
            Classified(classes[int(torch.argmax(share_C))], dict(zip(classes, share_C.tolist(), strict=True)))
            for share_C in shares
        ]

    def tell(self, texts: Sequence[str], options: Sequence[str] = ()) -> Told:
        """Each text's class, and how probable each class is."""
        check_no_options(options, self.does)
        found = self.classify(texts)
        lines = []
        for each in found:
            by_share = sorted(each.probabilities.items(), key=lambda item: -item[1])
            lines.append(f"{each.label} ({', '.join(f'{label} {share:.3f}' for label, share in by_share)})")
        return Told(tuple(lines), tuple(vars(each) for each in found))
