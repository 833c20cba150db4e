"""Whether a model reads the tokens that it is given: the tokenizer of another model, told before training.

A model that was trained on its tokens knows how sure it may be: the mean of -log p of the tokens that come (its loss) is near the
mean of the entropy of what it expects, both in nats. One that is given the tokens of another tokenizer goes on expecting what its
own would be, and is wrong each time: its loss lies far above its entropy, and reaches that of a guess among all tokens. Random
weights reach that too, but expect it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from luthier.errors import GateRefusal
from luthier.models.language_model import LanguageModel
from luthier.models.outputs import Outputs
from luthier.ops.workers import Workers
from luthier.prediction.passes import Passes, Said, said_of_each
from luthier.types import Example, Part

MOST_SURPRISE = 2.5
"""Nats a token by which the loss may lie above the entropy: at the beginnings of chats, Chinese answers and SQL, SmolLM2 has 0.3
to 1.7 on its own tokens and 6.4 to 6.7 on shuffled ones; random weights of 4,096 columns have 1.6."""

BELOW_A_GUESS = 0.5
"""Nats a token by which the loss must be below a guess among all tokens, for however surprised a model to be let pass: one that was
trained on other texts is surprised too, but still better than a guess."""

FEWEST_WORDS = 1024
"""With fewer tokens a guess is good."""

NUM_ROWS = 8
TOKENS_OF_ROW = 64
FEWEST_TOKENS = 64
"""Fewer tokens say nothing for sure."""


def refuse_foreign_tokens(model: LanguageModel, examples: Sequence[Example]) -> None:
    """Raise GateRefusal where a trained decoder expects other tokens than the rows have.

    The model is read, and nothing is drawn. Not asked are models of few tokens, and those whose weights a method has split.
    """
    num_words = min(model.vocab_size, len(model.tokenizer))
    is_decoder = model.anatomy.family.kind == "decoder" and model.anatomy.purpose == "words"
    if not is_decoder or model.vocab_size < FEWEST_WORDS or model.prepared:
        return
    rows = [beginning_of(example) for example in examples[:: max(1, len(examples) // NUM_ROWS)][:NUM_ROWS]]
    rows = [row for row in rows if row.num_learned]
    if sum(row.num_learned for row in rows) < FEWEST_TOKENS:
        return
    loss, entropy = loss_and_entropy(model, rows)
    guess = math.log(num_words)
    if loss - entropy <= MOST_SURPRISE or loss <= guess - BELOW_A_GUESS:
        return
    raise GateRefusal(
        f"The model expects other tokens than the rows have: on the first of them its loss is {loss:.1f} nats a token, where a guess "
        f"costs {guess:.1f}, and it is as sure of what comes as if it were {entropy:.1f}. The tokenizer is another model's, or weights "
        "are broken.",
        "Put the model's own tokenizer beside it, and see that its weights are whole. If both are so, set model.trust_tokenizer to "
        "true.",
        field="model",
    )


def loss_and_entropy(model: LanguageModel, rows: Sequence[Example]) -> tuple[float, float]:
    """The means over all targets of -log p, and of the entropy of what is expected there (nats)."""
    with Workers(1) as workers:
        said = torch.cat(said_of_each(model, None, rows, _losses, Passes(workers), "Reading the first rows"))
    loss, entropy = said.mean(dim=0).tolist()
    return loss, entropy


def beginning_of(example: Example) -> Example:
    """The first tokens of a row's first part, each but the first to be told from those before it."""
    tokens_T = example.parts[0].tokens_T[:TOKENS_OF_ROW]
    count = max(0, len(tokens_T) - 1)
    return Example(
        parts=(Part(tokens_T),),
        source_N=np.arange(count),
        token_N=tokens_T[1:],
        weight_N=np.ones(count, dtype=np.float32),
        sample_N=np.zeros(count, dtype=np.int64),
        document=example.document,
        origin=example.origin,
    )


def _losses(outputs: Outputs) -> Said:
    """Of each target -log p and the entropy of what is expected there (nats), fp64, shape (N, 2)."""
    return torch.stack([-outputs.logprob_N.double(), outputs.entropy_N.double()], dim=1), outputs.targets.row_N
