"""The gate: what would train a broken model is refused before step 1, and some rows are shown as they will be learned.

Refused are: no rows; rows in which nothing is learned; tokens that the model has no embedding for; a tokenizer to which the
model's end of text is a word; a doubled BOS; chats whose end of turn, and plain rows whose end of text, is never learned;
prompts that serving would feed otherwise; answers that call tools where the template leaves calls out.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from luthier.data.dataset import Dataset
from luthier.data.facts import KINDS, facts_of, kinds_of
from luthier.data.marked import MarkedRow, shown_row
from luthier.data.rendering import learned_messages
from luthier.data.sequences import Chosen, Joined
from luthier.data.served import refuse_other_prompts
from luthier.data.template import FIELD
from luthier.data.tokens.making import labels_in
from luthier.data.tokens.record_json import record_line
from luthier.data.whole_texts import Whole
from luthier.errors import GateRefusal
from luthier.types import (
    NO_LENGTHS,
    Conversation,
    Example,
    IntArray,
    Labelled,
    Origin,
    Prompt,
    Record,
    RowLengths,
    Tagged,
)

NUM_SHOWN = 3
NUM_SAMPLED = 64  # about so many rows, spread over the data, where judging every row would take long


@dataclass(frozen=True)
class GateReport:
    """What passed the gate: numbers over the training rows, up to three of them marked, and what a user should know.

    classes: where rows are texts with classes, how many training rows each class has, the most frequent first. ranks: as `Rules` has
    it: what is learned are then answers. lengths: of all rows uncut, those left out included.
    """

    rows: tuple[MarkedRow, ...]
    num_rows: int
    num_held_out: int
    num_tokens: int
    num_learned: int
    longest_row: int
    mean_row: float
    notes: tuple[str, ...]
    classes: tuple[tuple[str, int], ...] = ()
    ranks: bool = False
    lengths: RowLengths = NO_LENGTHS


@dataclass(frozen=True)
class Rules:
    """What an objective is judged by.

    learns_ends: plain rows must teach some end of text. in_place: as `Objective` has it. only_asks: rows are prompts, and the
    model itself writes what it learns. ranks: whether targets are whole answers, and their tokens places among them.
    """

    learns_ends: bool = True
    in_place: bool = False
    only_asks: bool = False
    ranks: bool = False


def check_gate(
    dataset: Dataset,
    vocab_size: int | None = None,
    rules: Rules = Rules(),
    marks: Mapping[str, int] = MappingProxyType({}),
    *,
    trusts_tokenizer: bool = False,
) -> GateReport:
    """The report on a data set that may be trained on.

    vocab_size: rows of the model's embedding; None where no model is known. marks: the tokens that the model's config
    names, such as `eos_token_id`. trusts_tokenizer: whether those may be words to the tokenizer.
    Raises: GateRefusal, with the mend, and the file and line of the first row at fault.
    """
    examples, tokenizer = dataset.train, dataset.renderer.tokenizer
    if not examples:
        raise GateRefusal(
            "There is no row to train on.",
            "Give training rows; if data.too_long: drop left all of them out, raise data.max_length.",
            field="data.train",
        )
    counted = _Counted(dataset)
    if not rules.only_asks:
        _refuse_rows_without_learning(counted)
    notes = _check_vocabulary(counted, tokenizer, vocab_size)
    notes += _check_marks(marks, tokenizer, vocab_size, trusts_tokenizer)
    _refuse_doubled_bos(counted, tokenizer)
    if not rules.only_asks:
        _refuse_endless_answers(counted, rules)
        refuse_other_prompts(dataset.renderer, _spread(dataset, np.arange(len(dataset.train))))
    notes += _header_notes(counted)
    notes += _check_extras(counted)
    classes = Counter(counted.labels(is_held_out=False))
    notes += _class_notes(counted, classes)
    facts_R = counted.train_R
    shown = zip(dataset.train_records, examples[:NUM_SHOWN], strict=False)
    return GateReport(
        rows=tuple(
            shown_row(record, example, tokenizer, ranks=rules.ranks, in_place=rules.in_place)
            for record, example in shown
        ),
        num_rows=len(examples),
        num_held_out=len(dataset.validation),
        num_tokens=int(facts_R["tokens"].sum()),
        num_learned=int(facts_R["learned"].sum()),
        longest_row=int(facts_R["tokens"].max()),
        mean_row=int(facts_R["tokens"].sum()) / len(facts_R),
        notes=tuple(notes),
        classes=tuple(classes.most_common()),
        ranks=rules.ranks,
        lengths=dataset.lengths,
    )


# ── refusals ────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Counted:
    """A data set with the facts of its rows: those to train on, and after them those held out.

    Shapes: R rows to train on; A all rows. kind_A: of each record, as `KINDS` counts them.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.train_R = facts_of(dataset.train)
        self.facts_A = np.concatenate([self.train_R, facts_of(dataset.validation)])
        kinds = [kinds_of(records) for records in (dataset.train_records, dataset.validation_records)]
        self.kind_A = np.concatenate([kind_R for kind_R, _ in kinds])
        self.extras_A = np.concatenate([extras_R for _, extras_R in kinds])

    def example(self, index: int) -> Example:
        """One of all rows."""
        return Joined([self.dataset.train, self.dataset.validation])[index]

    def record(self, index: int) -> Record:
        """The record of one of all rows."""
        return Joined([self.dataset.train_records, self.dataset.validation_records])[index]

    @property
    def is_chat_A(self) -> NDArray[np.bool_]:
        """Whether a row's answers end as turns of a chat do; an encoder-decoder's end as plain text."""
        renderer = self.dataset.renderer
        if renderer.answer_start is not None:
            return np.zeros(len(self.kind_A), dtype=np.bool_)
        return self._are([renderer.writes_as_chat(kind) for kind in KINDS])

    @property
    def is_whole_A(self) -> NDArray[np.bool_]:
        """Whether a row's texts are read as a whole."""
        return self._are([issubclass(kind, get_args(Whole)) for kind in KINDS])

    def _are(self, of_kinds: Sequence[bool]) -> NDArray[np.bool_]:
        of_rows: NDArray[np.bool_] = np.array(of_kinds)[self.kind_A]
        return of_rows

    def labels(self, is_held_out: bool) -> Iterator[str]:
        """The labels of the rows to train on, or of those held out; nothing is read where no record has any."""
        records = self.dataset.validation_records if is_held_out else self.dataset.train_records
        if np.isin(self.kind_A, [KINDS.index(Labelled), KINDS.index(Tagged)]).any():
            yield from (label for record in records for label in labels_in(record))


def _refuse_rows_without_learning(counted: _Counted) -> None:
    empty = np.flatnonzero(~counted.facts_A["teaches"])
    if not len(empty):
        return
    if not counted.is_chat_A[empty[0]]:
        why, mend = "It holds no text to learn.", "Fill the row or remove it."
    else:
        why = "No message of it has the role 'assistant' and a weight other than 0."
        mend = "Give such rows an answer of the assistant, or remove them. If the answers bear another role, rename it."
    found = f"Nothing in this row would be learned. {why}"
    refusal = _refusal(found, mend, counted.example(int(empty[0])).origin, len(empty), len(counted.facts_A))
    refusal.is_of_rows = True
    raise refusal


def _check_vocabulary(counted: _Counted, tokenizer: PreTrainedTokenizerBase, vocab_size: int | None) -> list[str]:
    if vocab_size is None:
        return []
    beyond = np.flatnonzero(counted.facts_A["highest"] >= vocab_size)
    if len(beyond):
        token_id = int(counted.facts_A["highest"][beyond[0]])
        raise _refusal(
            f"The tokenizer writes {tokenizer.convert_ids_to_tokens(token_id)!r} as token {token_id}, but the model's "
            f"vocabulary ends at {vocab_size - 1}: the tokenizer and the model do not belong together.",
            "Use the model's own tokenizer, or a model whose embedding was enlarged for the added tokens.",
            counted.example(int(beyond[0])).origin,
            len(beyond),
            len(counted.facts_A),
        )
    if len(tokenizer) <= vocab_size:
        return []
    # Some published models are so (a text model with the tokenizer of its sibling for images), and train well.
    return [
        f"The tokenizer knows {len(tokenizer)} tokens, the model {vocab_size}; no row uses those beyond the model, "
        "but such a token in a later prompt would fail."
    ]


def _check_marks(
    marks: Mapping[str, int], tokenizer: PreTrainedTokenizerBase, vocab_size: int | None, is_trusted: bool
) -> list[str]:
    """Notes on tokens that a model's config names otherwise than its tokenizer.

    Raises: GateRefusal for one that it lacks, and for a word of it where the model has its end of text.
    """
    notes = []
    for name, index in marks.items():
        if vocab_size is not None and len(tokenizer) <= index < vocab_size:
            raise GateRefusal(
                f"The model's {name} is {index}, but the tokenizer's tokens end at {len(tokenizer) - 1}: the tokenizer and the "
                "model do not belong together.",
                "Use the model's own tokenizer.",
                field="model",
            )
        if index >= len(tokenizer) or not _is_word(index, tokenizer):
            continue
        found = (
            f"The model's config has {name} {index}, which the tokenizer writes as "
            f"{tokenizer.convert_ids_to_tokens(index)!r}, an ordinary token"
        )
        # Only what ends a text is decisive: some published models (CodeGen) name a wrong first token, which nothing reads.
        if name == "eos_token_id" and not is_trusted:
            raise GateRefusal(
                f"{found}: the tokenizer is that of another model.",
                f"Put the model's own tokenizer beside it. If it is its own, correct {name} in the model's config.json, or set "
                "model.trust_tokenizer to true.",
                field="model",
            )
        notes.append(f"{found}: is it the model's own tokenizer?")
    return notes


def _is_word(index: int, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a token is one that texts are written with, and no mark such as an end of text."""
    return index not in tokenizer.all_special_ids and index not in tokenizer.added_tokens_decoder


def _refuse_doubled_bos(counted: _Counted, tokenizer: PreTrainedTokenizerBase) -> None:
    bos = tokenizer.bos_token_id
    if bos is None:
        return
    facts_A = counted.facts_A
    doubled = np.flatnonzero((facts_A["first"] == bos) & (facts_A["second"] == bos))
    if not len(doubled):
        return
    mark = str(tokenizer.bos_token)
    sampled = doubled[:: max(1, len(doubled) // NUM_SAMPLED)].tolist()
    is_of_rows = all(json.dumps(mark)[1:-1].encode() in record_line(counted.record(index)) for index in sampled)
    refusal = _refusal(
        f"The row begins with {mark!r} twice, which the model has never seen.",
        f"Remove {mark!r} from the rows: the template or the tokenizer adds it."
        if is_of_rows
        else f"Set {FIELD} to a template that writes {mark!r} once.",
        counted.example(int(doubled[0])).origin,
        len(doubled),
        len(facts_A),
    )
    refusal.is_of_rows = is_of_rows
    raise refusal


def _refuse_endless_answers(counted: _Counted, rules: Rules) -> None:
    """Chats must teach their end of turn, and plain rows their end of text, in at least one row each."""
    dataset = counted.dataset
    renderer, tokenizer = dataset.renderer, dataset.renderer.tokenizer
    is_chat_R = counted.is_chat_A[: len(dataset.train)]
    chats = np.flatnonzero(is_chat_R)
    plain = np.flatnonzero(~(is_chat_R | counted.is_whole_A[: len(dataset.train)]))
    if len(chats) and renderer.end_of_turn_id is None:
        raise GateRefusal(
            "The chat template ends answers with no token of its own, so the model would never learn to stop.",
            f"Set data.chat_template to one that writes a special token after each answer, such as {tokenizer.eos_token!r}; "
            "a token that the tokenizer does not know is only text to the model.",
            field=FIELD,
        )
    ends = [(plain, renderer.end_of_text_id, "end-of-text")] if len(plain) and rules.learns_ends else []
    if len(chats) and renderer.end_of_turn_id is not None:
        ends.append((chats, renderer.end_of_turn_id, "end-of-turn"))
    for rows, end, name in ends:
        examples = Chosen(dataset.train, rows)
        if not any(end in example.token_N[example.weight_N > 0] for example in examples):
            raise GateRefusal(
                f"The {name} token {tokenizer.convert_ids_to_tokens(end)!r} is never learned, so the model would never stop.",
                "Let at least some rows end within data.max_length (raise it, or set data.too_long: drop); for chats, let "
                "the last learned message be an answer that the template closes.",
                file=examples[0].origin.file,
            )


def _header_notes(counted: _Counted) -> list[str]:
    chat = counted.dataset.renderer.chat
    if chat is None or not counted.is_chat_A[: len(counted.train_R)].any():
        return []
    header = chat.header_left_to_the_model
    if not header:
        return []
    return [
        f"The chat template ignores add_generation_prompt, so the model learns to write {header!r} before each answer, "
        "and will show it. A template that opens the answer mends it (data.chat_template)."
    ]


def _check_extras(counted: _Counted) -> list[str]:
    """What the template leaves out of some rows. Raises: GateRefusal, if that is what they would learn to write."""
    dataset = counted.dataset
    chat = dataset.renderer.chat
    rows = np.flatnonzero(counted.extras_A[: len(dataset.train)])
    left_out: set[str] = set()
    for record, example in _spread(dataset, rows):
        said = record.asked if isinstance(record, Prompt) else record
        assert isinstance(said, Conversation)
        assert chat is not None  # conversations were rendered
        missing = chat.left_out(said)
        left_out.update(missing)
        learned = learned_messages(said.messages, dataset.renderer.learn)
        if "tool_calls" in missing and any("tool_calls" in dict(said.messages[i].extra) for i in learned):
            raise GateRefusal(
                "An answer of this row calls a tool, but the chat template leaves calls out: the model would learn to answer without the call.",
                "Set data.chat_template to one that writes tool_calls, write the calls as text in the content, "
                "or give such messages weight 0.",
                file=example.origin.file,
                line=example.origin.line,
            )
    return [
        f"The chat template leaves out {name} of the rows; the model will not see them." for name in sorted(left_out)
    ]


def _class_notes(counted: _Counted, classes: Counter[str]) -> list[str]:
    """Classes that are only among the rows held out."""
    unseen = sorted(set(counted.labels(is_held_out=True)) - set(classes))
    if not unseen:
        return []
    return [f"No training row has the label {', '.join(unseen)}, which rows held out have: it cannot be learned."]


def _spread(dataset: Dataset, rows: IntArray) -> Iterator[tuple[Record, Example]]:
    """Some of these training rows, spread over them."""
    for index in rows[:: max(1, len(rows) // NUM_SAMPLED)].tolist():
        yield dataset.train_records[index], dataset.train[index]


def _refusal(found: str, mend: str, first: Origin, number: int, of: int) -> GateRefusal:
    return GateRefusal(f"{found} It is so for {number} of {of} rows.", mend, file=first.file, line=first.line)
