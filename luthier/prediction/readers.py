"""Which model that reads comes out of each objective."""

from __future__ import annotations

from luthier.objectives import (
    MLM,
    Classification,
    Embedding,
    MultipleChoice,
    Objective,
    Regression,
    Reward,
    TokenClassification,
)
from luthier.prediction.chooser import Chooser
from luthier.prediction.classifier import Classifier
from luthier.prediction.contract import Reader
from luthier.prediction.embedder import Embedder
from luthier.prediction.filler import Filler
from luthier.prediction.reward import RewardScorer
from luthier.prediction.scorer import Scorer
from luthier.prediction.tagger import Tagger

_READERS: dict[type[Objective], type[Reader]] = {
    Classification: Classifier,
    Regression: Scorer,
    TokenClassification: Tagger,
    MultipleChoice: Chooser,
    Reward: RewardScorer,
    Embedding: Embedder,
    MLM: Filler,
}


def reader_for(objective: Objective) -> type[Reader] | None:
    """What its runs are asked as; None for an objective that learns to write."""
    return _READERS.get(type(objective))
