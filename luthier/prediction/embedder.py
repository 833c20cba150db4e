"""A model that places texts by what they mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar

import torch
from torch import Tensor

from luthier.objectives import Embedding
from luthier.prediction.contract import Reader, Told, check_no_options, check_whole
from luthier.prediction.passes import vectors
from luthier.types import Labelled

_SHOWN_LETTERS = 60


@dataclass(frozen=True)
class Embedder(Reader):
    """A model that gives texts vectors: its weights, how texts become tokens, the adapter to use, and how it pools."""

    does: ClassVar[str] = "places texts by what they mean"
    asking: ClassVar[str] = "--prompt TEXT --prompt ANOTHER"
    base_answers: ClassVar[bool] = True

    objective: Embedding

    def embed(self, texts: Sequence[str]) -> Tensor:
        """The vectors of texts, of length 1, shape (texts, width): a product of two is their cosine similarity.

        Raises DataError for a text beyond the model's context.
        """
        for text in texts:
            check_whole(text)
        examples = self._examples(self.objective, [Labelled(text, None, "") for text in texts])
        return torch.cat(self._said(examples, vectors(self.objective)))

    def tell(self, texts: Sequence[str], options: Sequence[str] = ()) -> Told:
        """How similar the texts are, two by two; of one text its vector."""
        check_no_options(options, self.does)
        vector_MD = self.embed(texts)
        similarity_MM = (vector_MD @ vector_MD.T).tolist()
        lines = [
            f"{similarity_MM[i][j]:.3f}  {_short(texts[i])} | {_short(texts[j])}"
            for i, j in combinations(range(len(texts)), 2)
        ]
        if len(texts) == 1:
            lines = [" ".join(f"{number:.6g}" for number in vector_MD[0].tolist())]
        answers = tuple({"vector": vector_D} for vector_D in vector_MD.tolist())
        return Told(tuple(lines), answers, {"similarities": similarity_MM})


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN_LETTERS else f"{line[: _SHOWN_LETTERS - 1]}…"
