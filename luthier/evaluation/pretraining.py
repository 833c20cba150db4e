"""How well a model knows the tokens that an objective of pre-training hides or lets it write: base against tuned.

The texts are hidden, cut or noised as the run did it to those that it held out, once and the same for all candidates. Where
a part of a text is read and another written, both models also answer some of the rows, to be looked at, or all, to be measured. Pieces of one text count
as one row.
Shapes: N targets of a piece, R pieces, and whole texts once they are summed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from luthier.evaluation.candidates import Candidate, comparisons
from luthier.evaluation.intervals import bootstrap_mean
from luthier.evaluation.loss_by_row import RowLosses, loss_measures, task_measures
from luthier.evaluation.measure import Measure
from luthier.evaluation.rows import Rows, Texts
from luthier.evaluation.verdict import Answered, Evaluation
from luthier.generation.engine import Request, generate
from luthier.generation.settings import Sampling
from luthier.generation.text import decode_text
from luthier.objectives.asking import AS_WRITTEN, Asking
from luthier.prediction.passes import Passes, check_fits, likelihoods, said_of_each
from luthier.types import Example

ANSWERED = 8
"""How many rows are answered where answers are to be looked at alone."""
_ROOM = 16
"""How many more tokens an answer may have than twice the longest reference."""


def evaluate_targets(
    candidates: Sequence[Candidate],
    rows: Rows,
    passes: Passes,
    limit: int | None = None,
    *,
    asking: Asking = AS_WRITTEN,
    sampling: Sampling | None = None,
    num_answered: int | None = ANSWERED,
) -> Evaluation:
    """All candidates on the same rows: loss per token, perplexity, and how often the likeliest token is the right one.

    The first candidate is what the others are compared with. limit: use only the first so many rows.
    asking: how the run's prompts are read and its answers shown. sampling: how answers are drawn; unset, greedily.
    num_answered: most rows of which a part is read that both models answer; None: all of them.
    Raises: DataError, if there are no rows, or one is beyond a model's context.
    """
    rows = rows.first(limit)
    weights = [torch.from_numpy(example.weight_N).double() for example in rows.examples]
    texts = Texts.of(rows.examples)
    weight_R = texts.summed(torch.stack([weight_N.sum() for weight_N in weights]))
    losses, shares = [], []
    for candidate in candidates:
        check_fits(candidate.model, candidate.adapter, rows.examples)
        said = said_of_each(
            candidate.model, candidate.adapter, rows.examples, likelihoods, passes, f"{candidate.name}: loss"
        )
        sums_R2 = torch.stack([weight_N @ said_N2 for weight_N, said_N2 in zip(weights, said, strict=True)])
        losses.append(RowLosses(-texts.summed(sums_R2[:, 0]), weight_R))
        shares.append((texts.summed(sums_R2[:, 1]) / weight_R).tolist())
    of_rows = weight_R.tolist()
    accuracy = Measure(
        "accuracy",
        True,
        len(of_rows),
        tuple(bootstrap_mean(share, of_rows) for share in shares),
        comparisons(shares, of_rows),
    )
    return Evaluation(
        candidates=tuple(candidate.name for candidate in candidates),
        num_rows=len(of_rows),
        measures=(*loss_measures(losses), *task_measures(losses, texts.examples), accuracy),
        notes=(
            *rows.notes,
            f"{round(sum(of_rows)):,} tokens were to be told, in {_counted(len(of_rows), len(rows.examples))}.",
        ),
        answers=_answered(candidates, rows, asking, sampling, num_answered, passes),
    )


def _counted(num_texts: int, num_pieces: int) -> str:
    texts = f"{num_texts:,} text{'' if num_texts == 1 else 's'}"
    return texts if num_pieces == num_texts else f"{num_pieces:,} pieces of {texts}, which count as the rows"


# ── answers to look at ──────────────────────────────────────────────────────────────────────────────────────────────


def _answered(
    candidates: Sequence[Candidate],
    rows: Rows,
    asking: Asking,
    sampling: Sampling | None,
    most: int | None,
    passes: Passes,
) -> tuple[Answered, ...]:
    """What each candidate writes for the first rows of which a part is read and another written."""
    shown = [(prompt, row) for row in rows.examples if (prompt := _prompt_of(row)) is not None][:most]
    if not shown:
        return ()
    sampling = sampling or Sampling(max_new_tokens=_ROOM + 2 * max(row.num_learned for _, row in shown))
    tokenizer = candidates[0].model.tokenizer
    answers = []
    for candidate in candidates:
        requests = [
            Request(prompt, sampling, candidate.adapter, causal=asking.causal, shown_ids=asking.shown_ids)
            for prompt, _ in shown
        ]
        progress = partial(passes.progress, f"{candidate.name}: answers")
        written = generate(candidate.model, requests, cache_bytes=passes.cache_bytes, progress=progress)
        answers.append([answer.text for answer in written])
    return tuple(
        Answered(
            row.origin,
            decode_text(tokenizer, prompt, asking.shown_ids),
            decode_text(tokenizer, row.token_N.tolist(), asking.shown_ids),
            tuple(texts[index] for texts in answers),
        )
        for index, (prompt, row) in enumerate(shown)
    )


def _prompt_of(example: Example) -> tuple[int, ...] | None:
    """What is read of a row before anything is written; None where all of it is learned, or each token in its place."""
    if example.source_S is not None:
        return tuple(example.source_S.tolist())
    first = example.parts[0]
    return None if first.causal else tuple(first.tokens_T.tolist())
