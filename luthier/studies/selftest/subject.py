"""What a self-test is made on: the user's own model, an adapter that says something, and a few short rows.

Shapes: T tokens of a row, N learned targets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from luthier.data.packing import collate
from luthier.errors import RecipeError
from luthier.methods import ADAPTER, LoRA
from luthier.methods.adapter_attachment import AdapterAttachment
from luthier.models.families import family_of
from luthier.models.heads import WordsHead
from luthier.models.language_model import FastModel, LanguageModel
from luthier.models.loading import load_model
from luthier.models.settings import ModelSettings
from luthier.models.sources import locate, read_config
from luthier.objectives import SFT
from luthier.ops.draws import salt_of
from luthier.quantization.settings import QuantizationSettings
from luthier.studies.selftest.findings import rounding_of
from luthier.types import Batch, Example, IntArray, Origin, Part

Announce = Callable[[str], None]

PLAIN = FastModel(attention=False, head=False, gated_mlp=False, norm=False, linear=False)
METHOD = LoRA(rank=4, alpha=8)
LENGTHS = (20, 13, 17, 12, 19, 15, 12, 18)
"""Tokens of each row: no two rows fit into the longest one's place, so that a step can be cut into one row at a time."""

_SPREAD = 0.02  # of the noise on a new adapter, whose update is then a few hundredths of the weights
_TEXT = (
    "The kettle that I ordered on Monday has not come yet, and the shop says that it left the store three days ago. "
    "What should I do now? 1, 2, 3 and 42 are numbers; a red lamp costs 17.50, two of them 33. If it rains tomorrow, "
    "we shall read a long book about whales and write down every word that we do not know."
)


@dataclass(frozen=True)
class Said:
    """log p of each learned target (N,), and the gradient of the rows' loss by the name of each trained tensor."""

    logprob_N: Tensor
    gradient: dict[str, Tensor]


@dataclass(frozen=True)
class Subject:
    """A model with an adapter at work, rows, and what the model says of them by the plain operations alone.

    folder: where checks may write. as_plain: the model of plain operations is gone again, for the sake of memory.
    """

    model: LanguageModel
    attachment: AdapterAttachment
    rows: tuple[Example, ...]
    as_plain: Said
    folder: Path

    @property
    def tolerance(self) -> float:
        """How far apart two ways of computing the same may come."""
        return rounding_of(self.model.dtype)

    @property
    def batch(self) -> Batch:
        """All rows at once."""
        return batch_of(self.model, self.rows)


def make_subject(
    settings: ModelSettings, quantization: QuantizationSettings | None, folder: Path, announce: Announce
) -> Subject:
    """Load the model, once with plain operations and then as runs do. Raises: the errors of `load_model`."""
    is_encoder = family_of(read_config(locate(settings, announce)).model_type).kind == "encoder"

    def load(fast: FastModel) -> LanguageModel:
        head = WordsHead() if is_encoder else None
        return load_model(settings, announce, fast=fast, head=head, quantization=quantization)

    as_plain = _said_plainly(load(PLAIN))
    model = load(FastModel())
    return Subject(model, attached(model), make_rows(model), as_plain, folder)


def _said_plainly(model: LanguageModel) -> Said:
    attachment = attached(model, fast=False)
    return said(model, attachment, batch_of(model, make_rows(model)))


def attached(
    model: LanguageModel, name: str = ADAPTER, method: LoRA = METHOD, *, fast: bool = True, noise: float = _SPREAD
) -> AdapterAttachment:
    """An adapter in the model whose numbers are all drawn, so that it says something from the beginning."""
    attachment = method.attach(model, name, seed=1, fast=fast)
    with torch.no_grad():
        for tensor_name, tensor in attachment.trainables.items():
            generator = torch.Generator().manual_seed(salt_of(tensor_name) & (2**63 - 1))
            tensor.add_(noise * torch.randn(tensor.shape, generator=generator).to(tensor.device))
    return attachment


def said(model: LanguageModel, attachment: AdapterAttachment, batch: Batch) -> Said:
    """What a model says of a batch under an adapter, and the gradient."""
    outputs = model.forward(batch, attachment.adapter)
    logprob_N = outputs.logprob_N
    trained = attachment.trainables
    gradients = torch.autograd.grad(SFT().loss_sum(outputs), list(trained.values()), allow_unused=True)
    pairs = zip(trained, gradients, strict=True)
    return Said(logprob_N.detach(), {name: gradient for name, gradient in pairs if gradient is not None})


@torch.no_grad()
def logprobs(model: LanguageModel, batch: Batch, adapter: str | None) -> Tensor:
    """log p of each target of a batch, shape (N,)."""
    return model.forward(batch, adapter).logprob_N


def batch_of(model: LanguageModel, rows: tuple[Example, ...], *, shares_prefix: bool = False) -> Batch:
    """Rows as one batch in the model's layout, on its device."""
    return collate(rows, model.layout, model.pad_id, shares_prefix=shares_prefix).to(model.device)


# ── rows ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def make_rows(model: LanguageModel) -> tuple[Example, ...]:
    """Rows of text and of tokens drawn at random, one after another, as the model's family learns them."""
    read_T = np.asarray(model.tokenizer.encode(_TEXT, add_special_tokens=False), dtype=np.int64)
    if not len(read_T):
        raise RecipeError("The model's tokenizer makes no token of plain text.", "Check its files.", field="model")
    drawn = np.random.default_rng(0)
    known = np.setdiff1d(np.arange(model.vocab_size), np.asarray(model.tokenizer.all_special_ids, dtype=np.int64))
    rows = []
    for number, length in enumerate(LENGTHS):
        text_T = np.resize(np.roll(read_T, -11 * number), length)
        rows.append(row_of(model, text_T if number % 2 == 0 else drawn.choice(known, length), number))
    return tuple(rows)


def row_of(model: LanguageModel, tokens_T: IntArray, number: int, first: int = 1) -> Example:
    """A row that teaches tokens: each from the one before it; in an encoder, every third in its own place behind a mask.

    An encoder-decoder writes them, and reads them turned round. first: the first token that is learned.
    """
    learned_N = np.arange(first, len(tokens_T))
    source_N, source_S, shown_T = learned_N - 1, None, tokens_T
    if model.answer_start is not None:
        source_S, shown_T = tokens_T[::-1].copy(), np.concatenate([[model.answer_start], tokens_T[:-1]])
        source_N = learned_N
    elif model.anatomy.family.kind == "encoder":
        learned_N = source_N = learned_N[::3]
        mask_id = model.tokenizer.mask_token_id
        shown_T = tokens_T.copy()
        shown_T[learned_N] = mask_id if isinstance(mask_id, int) else shown_T[learned_N]
    weight_N = np.ones(len(learned_N), dtype=np.float32)
    weight_N[::4] = 0.5  # so that targets do not all count alike
    return Example(
        parts=(Part(shown_T),),
        source_N=source_N,
        token_N=tokens_T[learned_N],
        weight_N=weight_N,
        sample_N=np.zeros(len(learned_N), dtype=np.int64),
        document=number,
        origin=Origin("self-test", number + 1),
        source_S=source_S,
    )


def drawn_states(num_tokens: int, width: int, model: LanguageModel, seed: int = 0) -> Tensor:
    """States as layers read them, drawn, shape (num_tokens, width), with a gradient asked for."""
    drawn = torch.randn(num_tokens, width, generator=torch.Generator().manual_seed(seed))
    return drawn.to(device=model.device, dtype=model.dtype).requires_grad_()
