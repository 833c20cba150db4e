"""Base against tuned on the same held-out rows: the loss, and how near the answers come to the references.

Shapes: R rows, N learned targets of a batch, S segments of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from luthier.data.batches import evaluation_batches
from luthier.data.mixture import by_task
from luthier.data.placeholders import with_placeholders
from luthier.data.rendering import Renderer
from luthier.errors import DataError
from luthier.evaluation.final_answer import FINAL_ANSWER, marks_answer, same_final_answer
from luthier.evaluation.intervals import Estimate, bootstrap_difference, bootstrap_mean, sign_test, wilson
from luthier.evaluation.measure import LOSS_MARGIN, Comparison, Measure
from luthier.evaluation.metrics import best, exact_match, perplexity, rouge_l, token_f1
from luthier.evaluation.shots import with_shots
from luthier.evaluation.verdict import Answered, Evaluation
from luthier.generation.engine import MAX_ROWS, Request, generate
from luthier.generation.settings import Sampling
from luthier.models.language_model import LanguageModel
from luthier.objectives.sft import SFT
from luthier.ops.workers import Workers
from luthier.prediction.passes import Progress, check_fits, check_numbers, held, silent
from luthier.types import Batch, Completion, Example, Origin, Record

SCORES: tuple[tuple[str, Callable[[str, str], float]], ...] = (
    ("exact match", exact_match),
    ("token F1", token_f1),
    ("ROUGE-L", rouge_l),
)


@dataclass(frozen=True)
class Candidate:
    """A model under a name, and the adapter to use on it; None is the model as it is. shots: rows that it is shown first."""

    name: str
    model: LanguageModel
    adapter: str | None = None
    shots: tuple[Record, ...] = ()


@dataclass(frozen=True)
class Question:
    """A row as generation sees it: the prompt's tokens, what was asked last, and the answer that it should come to.

    others: further answers that would be as right.
    """

    origin: Origin
    prompt: tuple[int, ...]
    asked: str
    reference: str
    others: tuple[str, ...] = ()

    @property
    def references(self) -> tuple[str, ...]:
        """All answers that would be right, the one of the row first."""
        return (self.reference, *self.others)


def evaluate_records(
    candidates: Sequence[Candidate],
    records: Sequence[tuple[Record, Origin]],
    examples: Sequence[Example],
    renderer: Renderer,
    sampling: Sampling,
    workers: Workers,
    *,
    tokens_per_micro_batch: int = 1024,
    limit: int | None = None,
    max_rows: int = MAX_ROWS,
    cache_bytes: int | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """All candidates on the same rows: loss and perplexity, and by generation exact match, token F1 and ROUGE-L.

    The first candidate is what the others are compared with. A conversation's question is all before its last answer;
    plain text has none, so that it counts for loss and perplexity only.

    Args:
        examples: what the records teach; `document` is the index of the record.
        sampling: how answers are drawn; each row has a seed of its own, `sampling.seed` plus the row's index.
        limit: use only the first so many records.
        max_rows: most answers generated together. cache_bytes: most memory that their keys and values take.

    Raises: DataError, if there are no records, no learned token and no question in them, or a prompt is too long.
    """
    if not records:
        raise DataError("There are no rows to evaluate on.", "Give a file that holds at least one row.")
    chosen = records[:limit]
    notes = [] if len(chosen) == len(records) else [f"The first {len(chosen)} of {len(records)} rows were used."]
    questions = questions_of(chosen, renderer)
    learned = [example for example in examples if example.document < len(chosen) and example.num_learned]
    if not questions and not learned:
        raise DataError(
            "No row has an answer, so there is nothing to measure.",
            "Give rows with answers, or plain text.",
            file=chosen[0][1].file,
        )
    asked = [_Rows(questions, learned).behind(candidate.shots, chosen, renderer) for candidate in candidates]
    for candidate, own in zip(candidates, asked, strict=True):
        check_room(candidate, own.questions, own.learned)
    notes += _left_out(len(chosen), len(questions), len(learned))
    measures: list[Measure] = []
    if learned:
        losses = [
            losses_by_row(candidate, own.learned, len(chosen), tokens_per_micro_batch, workers, progress)
            for candidate, own in zip(candidates, asked, strict=True)
        ]
        for candidate, rows in zip(candidates, losses, strict=True):
            check_numbers(list(rows.nats_R), [e for e in learned if e.weight_N.any()], f"{candidate.name}: loss")
        measures += loss_measures(losses)
        measures += task_measures(losses, [example for example in learned if example.weight_N.any()])
    answers = [
        _answers(candidate, own.questions, renderer, sampling, max_rows, cache_bytes, progress)
        for candidate, own in zip(candidates, asked, strict=True)
    ]
    if questions:
        references = [question.references for question in questions]
        measures += score_measures(answers, references)
        measures += final_answer_measures(answers, references)
        notes += _several(references)
    return Evaluation(
        candidates=tuple(candidate.name for candidate in candidates),
        num_rows=len(chosen),
        measures=tuple(measures),
        notes=tuple(notes),
        answers=tuple(
            Answered(
                question.origin,
                question.asked,
                question.reference,
                tuple(texts[i] for texts in answers),
                question.others,
            )
            for i, question in enumerate(questions)
        ),
    )


@dataclass(frozen=True)
class _Rows:
    """What a candidate is asked, and what its loss is taken of."""

    questions: Sequence[Question]
    learned: Sequence[Example]

    def behind(self, shots: Sequence[Record], chosen: Sequence[tuple[Record, Origin]], renderer: Renderer) -> _Rows:
        """The same rows behind shots."""
        if not shots:
            return self
        records = [(with_shots(record, shots, renderer), origin) for record, origin in chosen]
        examples = [
            SFT().example(renderer.render(*records[example.document]), example.document, example.origin)
            for example in self.learned
        ]
        return _Rows(questions_of(records, renderer), examples)


# ── questions ───────────────────────────────────────────────────────────────────────────────────────────────────────


def questions_of(records: Sequence[tuple[Record, Origin]], renderer: Renderer) -> list[Question]:
    """The rows that ask something and have an answer in text, ready for generation.

    Raises: DataError, at the row, if the chat template cannot render its prompt.
    """
    questions = []
    for record, origin in records:
        try:
            question = _question(record, origin, renderer)
        except DataError as error:
            raise DataError(error.found, error.mend, file=origin.file, line=origin.line, field=error.field) from error
        if question is not None and question.reference.strip():
            questions.append(question)
    return questions


def _question(record: Record, origin: Origin, renderer: Renderer) -> Question | None:
    others = record.others if isinstance(record, Completion) else ()
    conversation = renderer.as_conversation(record)
    if conversation is not None:
        answers = [index for index, message in enumerate(conversation.messages) if message.role == "assistant"]
        if not answers or answers[-1] == 0:
            return None
        before, answer = conversation.messages[: answers[-1]], conversation.messages[answers[-1]]
        prompt = renderer.prompt_tokens(before, conversation.tools)
        return Question(origin, tuple(prompt), before[-1].content, answer.content, others)
    if isinstance(record, Completion):
        prompt = renderer.plain_prompt_tokens(record.prompt)
        return Question(origin, tuple(prompt), record.prompt, record.completion, others)
    return None


def check_room(candidate: Candidate, questions: Sequence[Question], examples: Sequence[Example]) -> None:
    """Raises DataError, with the row's place, for an empty prompt, and for one or a row beyond the model's context.

    An adapter's virtual tokens take room from both.
    """
    context = candidate.model.context_length
    num_virtual = candidate.model.num_virtual(candidate.adapter)
    check_fits(candidate.model, candidate.adapter, examples)
    for question in questions:
        file, line = question.origin.file, question.origin.line
        if not question.prompt:
            raise DataError(
                "The prompt is empty, so nothing can be asked.", "Give the row a prompt.", file=file, line=line
            )
        if context is not None and len(question.prompt) + num_virtual >= context:
            raise DataError(
                f"The prompt has {len(question.prompt)} tokens, but the model holds {held(candidate.model, candidate.adapter)}, the answer included.",
                "Shorten the row, or leave it out.",
                file=file,
                line=line,
            )


def _left_out(num_rows: int, num_questions: int, num_learned: int) -> list[str]:
    """What is to be said of rows that some measures could not use."""
    notes = []
    if num_questions < num_rows:
        notes.append(
            f"{num_rows - num_questions} of {num_rows} rows are plain text or have no answer in text: "
            "they count for loss and perplexity only."
        )
    if num_learned < num_rows:
        notes.append(
            f"{num_rows - num_learned} of {num_rows} rows have no learned tokens: they do not count for the loss."
        )
    return notes


# ── the loss ────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class RowLosses:
    """Each row's loss summed over its learned tokens (nats, weighted), and the sum of their weights."""

    nats_R: Tensor
    weight_R: Tensor

    def __add__(self, other: RowLosses) -> RowLosses:
        return RowLosses(self.nats_R + other.nats_R, self.weight_R + other.weight_R)


def losses_by_row(
    candidate: Candidate, examples: Sequence[Example], num_rows: int, budget: int, workers: Workers, progress: Progress
) -> RowLosses:
    """The candidate's losses, on all worker threads; only rows with learned tokens, in their order."""
    model = candidate.model
    virtual = model.num_virtual(candidate.adapter), model.num_virtual_answer(candidate.adapter)
    placed = [with_placeholders(example, *virtual) for example in examples]
    budget = max(budget, *(example.num_tokens for example in placed))  # a row too long for training can be measured
    batches = evaluation_batches(placed, budget, workers.count, model.layout, model.pad_id)
    task = f"{candidate.name}: loss"
    done: list[int] = []  # appending is atomic: workers share it

    def share_of(worker: int) -> Callable[[], RowLosses]:
        def compute() -> RowLosses:
            total = RowLosses(*torch.zeros(2, num_rows, dtype=torch.float64))
            for batch in batches[worker :: workers.count]:
                if workers.are_stopping.is_set():
                    break
                total += row_losses(model, candidate.adapter, batch, num_rows)
                done.append(len(set(batch.documents)))
                progress(task, sum(done), len(examples))
            return total

        return compute

    busy = range(min(workers.count, len(batches)))
    first, *others = workers.run([share_of(worker) for worker in busy])
    total = sum(others, start=first)
    counts = total.weight_R > 0
    return RowLosses(total.nats_R[counts], total.weight_R[counts])


def row_losses(model: LanguageModel, adapter: str | None, batch: Batch, num_rows: int) -> RowLosses:
    """The loss of one batch, told apart by the document that each target belongs to; rows not in it are 0."""
    on_device = batch.to(model.device)
    with torch.inference_mode():
        logprob_N = model.forward(on_device, adapter).logprob_N.double().cpu()
    targets = batch.targets
    weight_N = targets.weight_N.double()
    start_S = torch.tensor([segment.start for segment in batch.segments])
    document_S = torch.tensor(batch.documents)
    document_N = document_S[torch.bucketize(targets.source_N, start_S, right=True) - 1]
    zeros_R = torch.zeros(num_rows, dtype=torch.float64)
    nats_R = zeros_R.index_add(0, document_N, -logprob_N * weight_N)
    return RowLosses(nats_R, zeros_R.index_add(0, document_N, weight_N))


def loss_measures(losses: Sequence[RowLosses]) -> list[Measure]:
    """Loss per learned token over all rows, with rows as what is drawn anew; and perplexity, its exponential."""
    weights = losses[0].weight_R.tolist()
    means = [(row.nats_R / row.weight_R).tolist() for row in losses]
    estimates = tuple(bootstrap_mean(mean, weights) for mean in means)
    exponentials = tuple(Estimate(perplexity(e.value), perplexity(e.low), perplexity(e.high)) for e in estimates)
    only_a_scale = tuple(Comparison(None, None) for _ in losses[1:])
    return [
        Measure("loss", False, len(weights), estimates, comparisons(means, weights), LOSS_MARGIN, "likelihood"),
        Measure("perplexity", False, len(weights), exponentials, only_a_scale),
    ]


def mean_loss(losses: Sequence[Sequence[float]]) -> Measure:
    """The mean of each candidate's losses, one a row."""
    estimates = tuple(bootstrap_mean(each) for each in losses)
    return Measure("loss", False, len(losses[0]), estimates, comparisons(losses), LOSS_MARGIN, "likelihood")


def task_measures(losses: Sequence[RowLosses], examples: Sequence[Example]) -> list[Measure]:
    """The loss of each task, where the rows are of several; losses: a row an example that learns something."""
    tasks = by_task(examples)
    if len(tasks) == 1:
        return []
    measures = []
    for task in tasks:
        is_of_R = torch.tensor([(example.origin.task or "") == task for example in examples])
        own = [RowLosses(rows.nats_R[is_of_R], rows.weight_R[is_of_R]) for rows in losses]
        measures.append(replace(loss_measures(own)[0], name=f"loss: {task or 'no task'}", witness="part"))
    return measures


# ── answers ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _answers(
    candidate: Candidate,
    questions: Sequence[Question],
    renderer: Renderer,
    sampling: Sampling,
    max_rows: int,
    cache_bytes: int | None,
    progress: Progress,
) -> list[str]:
    """The candidate's answer to each question."""
    stop_ids = renderer.stop_ids
    requests = [
        Request(question.prompt, _with_own_seed(sampling, row), candidate.adapter, stop_ids)
        for row, question in enumerate(questions)
    ]
    task = f"{candidate.name}: answers"
    answers = generate(
        candidate.model,
        requests,
        max_rows=max_rows,
        cache_bytes=cache_bytes,
        progress=lambda done, total: progress(task, done, total),
    )
    return [answer.text for answer in answers]


def _with_own_seed(sampling: Sampling, row: int) -> Sampling:
    return sampling.model_copy(update={"seed": (sampling.seed + row) % 2**63})


def score_measures(answers: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> list[Measure]:
    """Exact match, token F1 and ROUGE-L of each candidate's answers, as means over the rows.

    references: of each row those of which the nearest counts.
    """
    measures = []
    for name, score in SCORES:
        scores = [
            [max(score(text, right) for right in rights) for text, rights in zip(texts, references, strict=True)]
            for texts in answers
        ]
        if score is exact_match:
            estimates = tuple(wilson(round(sum(row)), len(row)) for row in scores)
        else:
            estimates = tuple(bootstrap_mean(row) for row in scores)
        measures.append(Measure(name, True, len(references), estimates, comparisons(scores)))
    return measures


def final_answer_measures(answers: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> list[Measure]:
    """Whether each answer comes to the right end, where every row's reference marks its own: rows with a rationale."""
    if not all(marks_answer(first) for first, *_ in references):
        return []
    scores = [
        [float(best(same_final_answer, text, rights) or 0.0) for text, rights in zip(texts, references, strict=True)]
        for texts in answers
    ]
    estimates = tuple(wilson(round(sum(row)), len(row)) for row in scores)
    return [Measure(FINAL_ANSWER, True, len(references), estimates, comparisons(scores))]


def _several(references: Sequence[Sequence[str]]) -> list[str]:
    """What is to be said of rows with more than one right answer."""
    several = sum(len(rights) > 1 for rights in references)
    return [f"{several} of {len(references)} rows have several references: the nearest counts."] if several else []


def comparisons(values: Sequence[Sequence[float]], weights: Sequence[float] | None = None) -> tuple[Comparison, ...]:
    """Each later candidate's values, one a row, against the first one's."""
    first, found = values[0], []
    for later in values[1:]:
        changes = [after - before for before, after in zip(first, later, strict=True)]
        rises, falls = sum(change > 0 for change in changes), sum(change < 0 for change in changes)
        difference = bootstrap_difference(first, later, weights)
        found.append(Comparison(difference, sign_test(changes), rises, falls))
    return tuple(found)
