"""How near the answer's words come to the reference's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Self

from pydantic import Field, model_validator

from luthier.evaluation.grading.contract import Grade, Grader, Item, Sample
from luthier.evaluation.grading.libraries import needed
from luthier.evaluation.grading.templates import Missing, Template, filled
from luthier.evaluation.metrics import gleu, rouge_l, rouge_n

_LIBRARIES = {"fuzzy_match": "rapidfuzz", "bleu": "sacrebleu"}
Metric = Literal["fuzzy_match", "bleu", "gleu", "rouge_1", "rouge_2", "rouge_3", "rouge_4", "rouge_5", "rouge_l"]


class TextSimilarity(Grader):
    """From 0 to 1.

    fuzzy_match: twice the longest common subsequence of letters over both lengths (rapidfuzz). bleu: of one sentence, its
    counts smoothed (sacrebleu). gleu: runs of up to four words in common over those of the text that has more. rouge_1 … rouge_l: the F-measure over runs of words.
    """

    kind: Literal["text_similarity"] = Field("text_similarity", alias="type")
    input: Template = Field("{{ sample.output_text }}", description="What is compared.")
    reference: Template = Field(description="What it is compared with, such as {{ item.answer }}.")
    evaluation_metric: Metric = Field("rouge_l", description="How.")

    @model_validator(mode="after")
    def _can_be_counted(self) -> Self:
        """Raise UsageError where its library is not installed, before anything is answered."""
        if library := _LIBRARIES.get(self.evaluation_metric):
            needed(library)
        return self

    def grade(self, sample: Sample, item: Item) -> Grade:
        """See the class."""
        try:
            given, wanted = (filled(text, sample, item) for text in (self.input, self.reference))
        except Missing as missing:
            return Grade(None, str(missing))
        return Grade.of(_similarity(self.evaluation_metric)(given, wanted))


def _similarity(metric: Metric) -> Callable[[str, str], float]:
    if metric == "fuzzy_match":
        return lambda given, wanted: float(needed("rapidfuzz").fuzz.ratio(given, wanted)) / 100
    if metric == "bleu":
        return lambda given, wanted: float(needed("sacrebleu").sentence_bleu(given, [wanted]).score) / 100
    if metric == "gleu":
        return gleu
    if metric == "rouge_l":
        return rouge_l
    return lambda given, wanted: rouge_n(given, wanted, int(metric[-1]))
