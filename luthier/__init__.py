"""Luthier fine-tunes language models that you own.

    import luthier

    run = luthier.train({"model": "smollm2-135m", "data": {"train": "tickets.jsonl"}})
    model = luthier.load(run.folder)
    print(model.generate("Where is my parcel?"))

Importing it loads nothing heavy: torch comes with the first call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from luthier.version import __version__

if TYPE_CHECKING:
    from luthier.api import evaluate, load, train, train_tokenizer
    from luthier.errors import LuthierError
    from luthier.prediction.chooser import Chooser
    from luthier.prediction.classifier import Classifier
    from luthier.prediction.embedder import Embedder
    from luthier.prediction.filler import Filler
    from luthier.prediction.reward import RewardScorer
    from luthier.prediction.scorer import Scorer
    from luthier.prediction.tagger import Tagger
    from luthier.prediction.text_model import Chat, TextModel
    from luthier.recipe import Recipe, load_recipe

__all__ = [
    "Chat",
    "Chooser",
    "Classifier",
    "Embedder",
    "Filler",
    "LuthierError",
    "Recipe",
    "RewardScorer",
    "Scorer",
    "Tagger",
    "TextModel",
    "__version__",
    "evaluate",
    "load",
    "load_recipe",
    "train",
    "train_tokenizer",
]

_HOMES = {
    "Chat": "luthier.prediction.text_model",
    "Chooser": "luthier.prediction.chooser",
    "Classifier": "luthier.prediction.classifier",
    "Embedder": "luthier.prediction.embedder",
    "Filler": "luthier.prediction.filler",
    "LuthierError": "luthier.errors",
    "Recipe": "luthier.recipe",
    "RewardScorer": "luthier.prediction.reward",
    "Scorer": "luthier.prediction.scorer",
    "Tagger": "luthier.prediction.tagger",
    "TextModel": "luthier.prediction.text_model",
    "evaluate": "luthier.api",
    "load": "luthier.api",
    "load_recipe": "luthier.recipe",
    "train": "luthier.api",
    "train_tokenizer": "luthier.api",
}


def __getattr__(name: str) -> Any:
    """The exported names, each imported from its home on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'luthier' has no attribute {name!r}")
    import importlib

    value = vars(importlib.import_module(_HOMES[name]))[name]
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
