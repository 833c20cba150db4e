"""Base against tuned on the same held-out rows: the loss, and how near the answers come to the references."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from luthier.data.rendering import Renderer
from luthier.errors import DataError
from luthier.evaluation.candidates import Candidate, comparisons
from luthier.evaluation.final_answer import FINAL_ANSWER, marks_answer, same_final_answer
from luthier.evaluation.intervals import bootstrap_mean, wilson
from luthier.evaluation.loss_by_row import RowLosses, loss_measures, losses_by_row, task_measures
from luthier.evaluation.measure import Measure
from luthier.evaluation.metrics import best, exact_match, rouge_l, token_f1
from luthier.evaluation.shots import with_shots
from luthier.evaluation.verdict import Answered, Evaluation
from luthier.generation.engine import MAX_ROWS, Request, generate
from luthier.generation.settings import Sampling
from luthier.objectives.sft import SFT
from luthier.ops.workers import Workers
from luthier.prediction.passes import TOO_LONG, Progress, check_fits, check_numbers, held, silent
from luthier.types import Completion, Example, Origin, Record

SCORES: tuple[tuple[str, Callable[[str, str], float]], ...] = (
    ("exact match", exact_match),
    ("token F1", token_f1),
    ("ROUGE-L", rouge_l),
)


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
    chosen = records[:limit]
    rows = _rows_of(chosen, examples, renderer)
    notes = [] if len(chosen) == len(records) else [f"The first {len(chosen)} of {len(records)} rows were used."]
    asked = [rows.behind(candidate.shots, chosen, renderer) for candidate in candidates]
    for candidate, own in zip(candidates, asked, strict=True):
        check_room(candidate, own.questions, own.learned)
    notes += _left_out(len(chosen), len(rows.questions), len(rows.learned))
    measures: list[Measure] = []
    if rows.learned:
        losses = [
            _losses(candidate, own.learned, rows.learned, len(chosen), tokens_per_micro_batch, workers, progress)
            for candidate, own in zip(candidates, asked, strict=True)
        ]
        measures += loss_measures(losses)
        measures += task_measures(losses, _taught(rows.learned))
    answers = [
        _answers(candidate, own.questions, renderer, sampling, max_rows, cache_bytes, progress)
        for candidate, own in zip(candidates, asked, strict=True)
    ]
    if rows.questions:
        references = [question.references for question in rows.questions]
        measures += score_measures(answers, references)
        measures += final_answer_measures(answers, references)
        notes += _several(references)
    return Evaluation(
        candidates=tuple(candidate.name for candidate in candidates),
        num_rows=len(chosen),
        measures=tuple(measures),
        notes=tuple(notes),
        answers=_answered(rows.questions, answers),
    )


def _losses(
    candidate: Candidate,
    own: Sequence[Example],
    learned: Sequence[Example],
    num_rows: int,
    tokens_per_micro_batch: int,
    workers: Workers,
    progress: Progress,
) -> RowLosses:
    """The losses of a candidate. own: its rows, behind its shots. learned: the same without. Raises: NotFinite."""
    found = losses_by_row(candidate, own, num_rows, tokens_per_micro_batch, workers, progress)
    check_numbers(list(found.nats_R), _taught(learned), f"{candidate.name}: loss")
    return found


def _taught(learned: Sequence[Example]) -> list[Example]:
    """The rows of which some token weighs anything."""
    return [example for example in learned if example.weight_N.any()]


def _answered(questions: Sequence[Question], answers: Sequence[Sequence[str]]) -> tuple[Answered, ...]:
    """Each question with what all candidates answered."""
    return tuple(
        Answered(each.origin, each.asked, each.reference, tuple(texts[row] for texts in answers), each.others)
        for row, each in enumerate(questions)
    )


def _rows_of(chosen: Sequence[tuple[Record, Origin]], examples: Sequence[Example], renderer: Renderer) -> _Rows:
    """What rows ask and teach. Raises: DataError, if that is nothing."""
    if not chosen:
        raise DataError("There are no rows to evaluate on.", "Give a file that holds at least one row.")
    questions = questions_of(chosen, renderer)
    learned = [example for example in examples if example.document < len(chosen) and example.num_learned]
    if not questions and not learned:
        raise DataError(
            "No row has an answer, so there is nothing to measure.",
            "Give rows with answers, or plain text.",
            file=chosen[0][1].file,
        )
    return _Rows(questions, learned)


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
    mend = "Show fewer rows first (--shots), or leave the row out." if candidate.shots else TOO_LONG
    check_fits(candidate.model, candidate.adapter, examples, mend)
    for question in questions:
        file, line = question.origin.file, question.origin.line
        if not question.prompt:
            raise DataError(
                "The prompt is empty, so nothing can be asked.", "Give the row a prompt.", file=file, line=line
            )
        if context is not None and len(question.prompt) + num_virtual >= context:
            raise DataError(
                f"The prompt has {len(question.prompt)} tokens, but the model holds {held(candidate.model, candidate.adapter)}, the answer included.",
                mend,
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
