"""What a model says at the targets of each of many examples, computed in batches on several threads.

Shapes: N targets of a batch, M vectors of a batch, C classes, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from luthier.data.batches import evaluation_batches
from luthier.data.facts import facts_of, laid_out
from luthier.data.placeholders import with_placeholders
from luthier.errors import DataError, NotFinite
from luthier.models.language_model import LanguageModel
from luthier.models.outputs import Outputs
from luthier.objectives import Embedding
from luthier.ops.workers import Workers
from luthier.training.loop import autocast
from luthier.types import Example

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much of it there is."""

Said = tuple[Tensor, Tensor]
"""Values, and for each (along the first axis) the row of the batch that it is of, ascending."""

_POSITIONS_AT_ONCE = 1024  # bounds the memory of logits over a whole vocabulary


def silent(task: str, done: int, total: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Passes:
    """How examples are computed: on which threads, how many tokens at once, and who is told how far it is.

    compute_in: as training computes them, where trained weights are of another number format than frozen ones.
    shares_prefix: compute a beginning that rows have in common once, where the model allows it.
    cache_bytes: most memory for keys and values where answers are written; None: as much as 65,536 tokens take.
    """

    workers: Workers
    tokens_at_once: int = 4096
    progress: Progress = silent
    compute_in: torch.dtype | None = None
    shares_prefix: bool = False
    cache_bytes: int | None = None


def said_of_each(
    model: LanguageModel,
    adapter: str | None,
    examples: Sequence[Example],
    say: Callable[[Outputs], Said],
    passes: Passes,
    task: str,
) -> list[Tensor]:
    """What `say` makes of the model's outputs, told apart by example, in the order of the examples; each has targets.

    adapter: the one to use; None is the bare model. task: what is being done, for `passes.progress`.
    """
    if not examples:
        return []
    workers = passes.workers
    virtual = model.num_virtual(adapter), model.num_virtual_answer(adapter)
    placed = [replace(with_placeholders(example, *virtual), document=row) for row, example in enumerate(examples)]
    # a row too long for training can be measured
    budget = max(passes.tokens_at_once, int(laid_out(facts_of(placed), model.layout).max(initial=0)))
    # a GPU's variable-length kernel knows no rows that share tokens
    shares = passes.shares_prefix and model.device.type == "cpu" and model.shares_tokens(adapter)
    batches = evaluation_batches(placed, budget, workers.count, model.layout, model.pad_id, shares_prefix=shares)
    found: dict[int, Tensor] = {}

    def share_of(worker: int) -> Callable[[], None]:
        def compute() -> None:
            for batch in batches[worker :: workers.count]:
                if workers.are_stopping.is_set():
                    break
                with torch.inference_mode(), autocast(model.device, passes.compute_in):
                    values, row_M = say(model.forward(batch.to(model.device), adapter))
                rows = list(dict.fromkeys(batch.documents))
                counts = torch.bincount(row_M, minlength=len(rows)).tolist()
                found.update(zip(rows, values.cpu().split(counts), strict=True))
                passes.progress(task, len(found), len(examples))

        return compute

    workers.run([share_of(worker) for worker in range(min(workers.count, len(batches)))])
    said = [found[row] for row in range(len(examples))]
    check_numbers(said, examples, task)
    return said


def check_numbers(said: Sequence[Tensor], examples: Sequence[Example], task: str) -> None:
    """Raise NotFinite, at its place, for the first example of which a model said NaN."""
    for values, example in zip(said, examples, strict=True):
        if bool(values.isnan().any()):
            raise NotFinite(
                f"The model gives NaN for this row ({task}).",
                "Its weights are broken, or too large for their type: look at its training loss, or set model.dtype to fp32.",
                file=example.origin.file,
                line=example.origin.line,
            )


def class_logits(outputs: Outputs) -> Said:
    """The logits of a head over classes, fp32, shape (N, C)."""
    return outputs.logits_NC, outputs.targets.row_N


def vectors(objective: Embedding) -> Callable[[Outputs], Said]:
    """The vectors of the rows' texts, shape (M, D)."""

    def say(outputs: Outputs) -> Said:
        whole = objective.whole(outputs)
        return whole.vector_MD, whole.row_M

    return say


def logprobs(outputs: Outputs) -> Said:
    """log p of each target (nats), fp64, shape (N,)."""
    return outputs.logprob_N.double(), outputs.targets.row_N


def likelihoods(outputs: Outputs) -> Said:
    """Of each target log p (nats), and whether it is the likeliest token (1 or 0); fp64, shape (N, 2)."""
    best_N = torch.cat([_best(outputs, start) for start in range(0, len(outputs.hidden_ND), _POSITIONS_AT_ONCE)])
    is_best_N = best_N == outputs.targets.token_N
    return torch.stack([outputs.logprob_N.double(), is_best_N.double()], dim=1), outputs.targets.row_N


def _best(outputs: Outputs, start: int) -> Tensor:
    """The likeliest token at neighbouring targets, shape (N,)."""
    hidden_ND = outputs.hidden_ND[start : start + _POSITIONS_AT_ONCE]
    return outputs.head.logits(hidden_ND, start).argmax(-1)


TOO_LONG = "Shorten the row, or leave it out."


def check_fits(model: LanguageModel, adapter: str | None, examples: Sequence[Example], mend: str = TOO_LONG) -> None:
    """Raise DataError, at its place, for an example beyond the model's context; an adapter's virtual tokens take room."""
    context, num_virtual = model.context_length, model.num_virtual(adapter)
    if context is None:
        return
    for example in examples:
        if example.longest_stream + num_virtual > context:
            raise DataError(
                f"The row has {example.longest_stream} tokens, but the model holds {held(model, adapter)}.",
                mend,
                file=example.origin.file,
                line=example.origin.line,
            )


def held(model: LanguageModel, adapter: str | None) -> str:
    """How many tokens a model holds, in words."""
    num_virtual = model.num_virtual(adapter)
    return f"{model.context_length}{f', {num_virtual} of them virtual' if num_virtual else ''}"
