"""The words that all folders share.

Rows become records (what a person wrote), records become examples (token ids and what is learned), examples become batches.

Shape suffixes: B rows, T tokens of a row, S tokens of a source, N learned targets, P tokens of an example over all its
parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticCustomError

if TYPE_CHECKING:
    import torch

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]

Layout = Literal["packed", "bucketed"]

ModelKind = Literal["decoder", "encoder", "encoder-decoder"]

TextsAs = Literal["written", "read", "raw"]
"""How a plain text becomes tokens: as a decoder writes it and learns its end, as an encoder reads it, or its tokens alone."""

Pooled = Literal["first", "last"]
"""Which token of a text a head over classes reads."""


class Settings(BaseModel):
    """What a user writes: typed, frozen, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)


def by_word(field: str) -> Callable[[Any], Any]:
    """Settings given by a word alone, as the field that it stands for; for `BeforeValidator`."""
    return lambda value: {field: value} if isinstance(value, str) else value


def fault_at(field: str, message: str) -> PydanticCustomError:
    """A fault of several fields together, told at one of them; for validators of `Settings`."""
    return PydanticCustomError("fields_disagree", "{message}", {"message": message, "field": field})


# ── records: what a person wrote ────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Origin:
    """Where a row came from: its file and its 1-based line (for JSON and Parquet, its 1-based row).

    task: which task of a mixture the row belongs to; None where there is one task alone.
    """

    file: str
    line: int
    task: str | None = None

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}"


INPUT = "input"
"""What of a user's message is the input of an instruction, where it ends the content after a blank line; an extra."""


@dataclass(frozen=True)
class Message:
    """One turn. `learn` is the row's own wish (a weight above 0, or 0); None leaves it to the recipe.

    `extra` holds what a chat template may use beside role and content, such as `tool_calls` and `name`.
    `weight` is how much each of its tokens counts where it is learned.
    """

    role: str
    content: str
    learn: bool | None = None
    extra: tuple[tuple[str, Any], ...] = ()
    weight: float = 1.0

    def as_dict(self) -> dict[str, Any]:
        """The message in the form that chat templates take."""
        return {"role": self.role, "content": self.content, **dict(self.extra)}


# `weight` of a record is how much its row counts in the loss, beside 1 for most.


@dataclass(frozen=True)
class Conversation:
    """A chat; `tools` are the function schemas offered to the model, in OpenAI form."""

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    weight: float = 1.0


@dataclass(frozen=True)
class Completion:
    """A prompt and the text that should follow it; `others` would be as right, and answers are measured against them too."""

    prompt: str
    completion: str
    others: tuple[str, ...] = ()
    weight: float = 1.0


def answered(prompt: str, texts: Sequence[str]) -> Completion:
    """A prompt with the first of several right texts (at least one); the others are kept, each once."""
    first, *others = dict.fromkeys(texts)
    return Completion(prompt, first, tuple(others))


@dataclass(frozen=True)
class PlainText:
    """Text learned as a whole.

    part_of: of a piece of a text that was too long, the SHA-256 of that text in hex; empty for a whole text.
    """

    text: str
    weight: float = 1.0
    part_of: str = ""


@dataclass(frozen=True)
class Labelled:
    """A text, or a pair of texts, and the class that it belongs to."""

    text: str
    pair: str | None
    label: str
    weight: float = 1.0


@dataclass(frozen=True)
class Scored:
    """A text, or a pair of texts, and a number that it should be given."""

    text: str
    pair: str | None
    score: float
    weight: float = 1.0


@dataclass(frozen=True)
class Tagged:
    """Words, and a tag for each."""

    words: tuple[str, ...]
    tags: tuple[str, ...]
    weight: float = 1.0


@dataclass(frozen=True)
class Choice:
    """A question, the options to choose from (two or more), and which one is right (an index)."""

    question: str
    options: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class Similar:
    """A text, another that means the same, and texts that do not."""

    anchor: str
    positive: str
    negatives: tuple[str, ...] = ()


Answered = Conversation | Completion
"""Something asked and its answer, which is what is judged."""


@dataclass(frozen=True)
class Preference:
    """Two answers to the same, the first better than the second; `margin` says by how much, where that is known.

    probability: how many of those who were asked find the first better, 0 to 1; a half is a tie.
    """

    chosen: Answered
    rejected: Answered
    margin: float | None = None
    probability: float = 1.0


@dataclass(frozen=True)
class Ranking:
    """Several answers to the same, and the place of each: 0 is the best, and answers that are as good share one."""

    answers: tuple[Answered, ...]
    places: tuple[int, ...]


@dataclass(frozen=True)
class Verdict:
    """An answer, and whether it is a good one."""

    answered: Answered
    is_good: bool


@dataclass(frozen=True)
class Prompt:
    """What is to be answered: a text, or a chat whose next message is the assistant's."""

    asked: Conversation | str


Record = (
    Conversation
    | Completion
    | PlainText
    | Labelled
    | Scored
    | Tagged
    | Choice
    | Similar
    | Preference
    | Verdict
    | Prompt
    | Ranking
)

Weighed = Conversation | Completion | PlainText | Labelled | Scored | Tagged
"""Records whose rows may count more or less than others."""

Gives = Literal[
    "text", "labels", "scores", "tags", "choices", "similar", "preferences", "verdicts", "prompts", "rankings"
]
"""What rows of a form hold, and what an objective learns from: text to write, or one of the other records.

Who learns from rankings learns from preferences too: they rank two answers.
"""


@dataclass(frozen=True)
class Piece:
    """Where a piece of a text that was too long comes from: of `count` pieces the one with this index.

    whole_T: the text's tokens, its end among them and what begins every piece (`num_lead` tokens) not.
    """

    whole_T: IntArray
    num_lead: int
    index: int
    count: int


@dataclass(frozen=True)
class Rendered:
    """A record as one run of tokens. `weight_T[t]` is how much the prediction *of* token t counts; 0 is not learned.

    row_weight: how much the row counts; `weight_T` has it already.
    source_S: for an encoder-decoder, what the encoder reads; `tokens_T` is then the decoder's. None for other models.
    label: the class of the whole text, where that is what the record teaches. types_T: 1 for the tokens of a second text,
    where the tokenizer tells them apart. num_closing: how many tokens at the end close the text and are no part of it.
    num_needed: how many tokens before those it takes for the row to mean anything. pooled: which token a class is read at.
    score: the number that the whole text should be given. tags: the tag at each of the places `tag_K`.
    beside: further texts of the row, which are read apart from this one: the other options of a question, the other texts of
    a comparison. chosen: which of all texts is the right one, counted from this one as 0. piece: of which text it is a piece.
    place: among answers that are ranked, that of this one; 0 is the best. share: how often it is taken for the best of them.
    """

    tokens_T: IntArray
    weight_T: FloatArray
    source_S: IntArray | None = None
    label: str | None = None
    types_T: IntArray | None = None
    num_closing: int = 0
    num_needed: int = 0
    pooled: Pooled = "last"
    score: float | None = None
    tags: tuple[str, ...] = ()
    tag_K: IntArray | None = None
    beside: tuple[Rendered, ...] = ()
    chosen: int = 0
    piece: Piece | None = None
    place: int = 0
    share: float = 0.0
    row_weight: float = 1.0

    @property
    def texts(self) -> tuple[Rendered, ...]:
        """This text and those beside it."""
        return (self, *self.beside)

    @property
    def num_tokens(self) -> int:
        """Tokens of the record, those of the source included; of several texts, of the longest."""
        return max(text.num_own_tokens for text in self.texts)

    @property
    def num_own_tokens(self) -> int:
        """Tokens of this text and its source."""
        return len(self.tokens_T) + (0 if self.source_S is None else len(self.source_S))

    @property
    def num_learned(self) -> int:
        """Learned tokens and tags of all texts."""
        return sum(int(np.count_nonzero(text.weight_T)) + len(text.tags) for text in self.texts)

    def cut(self, length: int) -> Rendered:
        """The row cut at its end to so many tokens; what closes the text stays.

        Of a source and its answer the source is cut, before its own last token, while one is left of it. Tags of words that
        are cut off go with them.
        """
        if self.beside:
            first = replace(self, beside=()).cut(length)
            return replace(first, beside=tuple(text.cut(length) for text in self.beside))
        if len(self.tokens_T) <= length and self.source_S is None:
            return self
        if self.source_S is not None:
            room = max(length - len(self.tokens_T), min(2, len(self.source_S)))
            source_S = np.concatenate([self.source_S[: room - 1], self.source_S[-1:]])
            own = max(1, length - len(source_S))
            return replace(self, tokens_T=self.tokens_T[:own], weight_T=self.weight_T[:own], source_S=source_S)
        kept = np.arange(len(self.tokens_T))
        kept = np.concatenate([kept[: length - self.num_closing], kept[len(kept) - self.num_closing :]])
        types_T = None if self.types_T is None else self.types_T[kept]
        cut = replace(self, tokens_T=self.tokens_T[kept], weight_T=self.weight_T[kept], types_T=types_T)
        if self.tag_K is None:
            return cut
        is_left = self.tag_K < length - self.num_closing
        tags = tuple(tag for tag, left in zip(self.tags, is_left.tolist(), strict=True) if left)
        return replace(cut, tags=tags, tag_K=self.tag_K[is_left])


@dataclass(frozen=True)
class RowLengths:
    """How many tokens rows have uncut, and what cutting them at a limit loses, whether or not they are cut.

    limit: most tokens of a row. num_long: how many rows have more. num_tokens, num_learned: of all rows, of all their texts.
    beyond, learned_beyond: how many of these lie beyond the limit. longest: tokens of the longest row.
    """

    limit: int = 0
    num_rows: int = 0
    num_long: int = 0
    num_tokens: int = 0
    num_learned: int = 0
    beyond: int = 0
    learned_beyond: int = 0
    longest: int = 0

    def joined(self, others: Sequence[RowLengths]) -> RowLengths:
        """Those of these rows and others together."""
        each = [self, *others]
        return RowLengths(
            limit=max(one.limit for one in each),
            num_rows=sum(one.num_rows for one in each),
            num_long=sum(one.num_long for one in each),
            num_tokens=sum(one.num_tokens for one in each),
            num_learned=sum(one.num_learned for one in each),
            beyond=sum(one.beyond for one in each),
            learned_beyond=sum(one.learned_beyond for one in each),
            longest=max(one.longest for one in each),
        )


NO_LENGTHS = RowLengths()
"""Those of no rows."""


# ── examples: token ids and what is learned ─────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Part:
    """A run of tokens of one example. It sees itself and its ancestors; its positions go on from its parent's end.

    `parent` is the index of another part of the same example, or None. A prompt shared by two answers is one part with
    two children; a bidirectional prompt (prefix-LM) is one part with `causal` False.
    """

    tokens_T: IntArray
    parent: int | None = None
    causal: bool = True


@dataclass(frozen=True)
class Example:
    """What one row teaches: its parts laid end to end (P tokens), and the list of its learned targets.

    Target n says: at flat position `source_N[n]` the next token should be `token_N[n]`, with weight `weight_N[n]`, as
    part of answer `sample_N[n]` (0 for the only answer; 0 and 1 for a preference pair). Where classes are learned, the
    source is the token that the head reads, and the token is the number of the class.

    num_virtual: how many of the tokens are placeholders for virtual tokens of a soft prompt.
    source_S: for an encoder-decoder, the tokens that the encoder reads; the parts are then the decoder's.
    types_P: 1 for the tokens of a second text; None where there is none.
    value_N: the number that each target should be given; None where tokens or classes are learned.
    piece: of which text it is a piece, where what is drawn is drawn for that text as a whole.
    given: further numbers that each target comes with, by name, such as an advantage.
    """

    parts: tuple[Part, ...]
    source_N: IntArray
    token_N: IntArray
    weight_N: FloatArray
    sample_N: IntArray
    document: int
    origin: Origin
    num_virtual: int = 0
    source_S: IntArray | None = None
    types_P: IntArray | None = None
    value_N: FloatArray | None = None
    piece: Piece | None = None
    given: Mapping[str, FloatArray] = field(default_factory=dict)

    @property
    def drawn_as(self) -> int:
        """The document whose draws it has: its own, or the first piece's of a text that is drawn as a whole."""
        return self.document if self.piece is None else self.document - self.piece.index

    @property
    def num_source_tokens(self) -> int:
        """Tokens of the source, placeholders included; 0 where there is none."""
        return 0 if self.source_S is None else len(self.source_S)

    @property
    def num_part_tokens(self) -> int:
        """Tokens over all parts, placeholders included."""
        return sum(len(part.tokens_T) for part in self.parts)

    @property
    def num_tokens(self) -> int:
        """Tokens over all parts and the source, placeholders included: what is computed."""
        return self.num_part_tokens + self.num_source_tokens

    @property
    def longest_stream(self) -> int:
        """The most positions that the model needs at once for it: those of a part go on from its parent's."""
        ends = [0] * len(self.parts)
        for index, part in enumerate(self.parts):
            ends[index] = len(part.tokens_T) + (0 if part.parent is None else ends[part.parent])
        return max([*ends, self.num_source_tokens])

    @property
    def num_real_tokens(self) -> int:
        """Tokens over all parts and the source that came from the row."""
        return self.num_tokens - self.num_virtual

    @property
    def num_learned(self) -> int:
        """Learned targets."""
        return len(self.token_N)


# ── batches ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Segment:
    """A part inside a packed row: tokens start..end of the row; `parent` is an index into the batch's segments."""

    start: int
    end: int
    parent: int | None = None
    causal: bool = True

    @property
    def length(self) -> int:
        """Tokens of the segment."""
        return self.end - self.start


@dataclass(frozen=True)
class Targets:
    """Learned targets of a batch: `source_N` indexes the batch's tokens flattened to B·T.

    row_N: which row of the batch each is of, counted from 0. value_N, given: as `Example` has them.
    """

    source_N: torch.Tensor
    token_N: torch.Tensor
    weight_N: torch.Tensor
    sample_N: torch.Tensor
    row_N: torch.Tensor
    value_N: torch.Tensor | None = None
    given: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @property
    def num_rows(self) -> int:
        """Rows that have targets, if every row has."""
        return int(self.row_N[-1]) + 1 if len(self.row_N) else 0

    def to(self, device: torch.device) -> Targets:
        """The same on another device."""
        return Targets(
            self.source_N.to(device),
            self.token_N.to(device),
            self.weight_N.to(device),
            self.sample_N.to(device),
            self.row_N.to(device),
            None if self.value_N is None else self.value_N.to(device),
            {name: number_N.to(device) for name, number_N in self.given.items()},
        )


@dataclass(frozen=True)
class Sources:
    """What the encoder of an encoder-decoder reads: right-padded rows, one for each row of the decoder's tokens.

    `mask_BS` is True on real tokens. `segments` says where each row's are, at `start = row · S`.
    """

    tokens_BS: torch.Tensor
    positions_BS: torch.Tensor
    mask_BS: torch.Tensor
    segments: tuple[Segment, ...]

    def to(self, device: torch.device) -> Sources:
        """The same on another device."""
        return Sources(self.tokens_BS.to(device), self.positions_BS.to(device), self.mask_BS.to(device), self.segments)


@dataclass(frozen=True)
class Batch:
    """One micro-batch, in one of two layouts with the same targets and counts.

    packed: B = 1; `segments` tile the row in order; `mask_BT` is None. Nothing is padding.
    bucketed: right-padded rows, one segment each at `start = row · T`; `mask_BT` is True on real tokens.

    `documents` gives for each segment the document that it came from: random draws are keyed by it.
    `sources`, in a bucketed batch for an encoder-decoder, is what the encoder reads; all else is the decoder's.
    types_BT: 1 for the tokens of a row's second text; None where no row has one.
    rows: the document of each example that it is made of, in order, as `Targets.row_N` counts them. tasks: of a mixture, the
    task of each; else none.
    """

    layout: Layout
    tokens_BT: torch.Tensor
    positions_BT: torch.Tensor
    mask_BT: torch.Tensor | None
    segments: tuple[Segment, ...]
    documents: tuple[int, ...]
    targets: Targets
    sources: Sources | None = None
    types_BT: torch.Tensor | None = None
    rows: tuple[int, ...] = ()
    tasks: tuple[str, ...] = ()

    @property
    def num_real_tokens(self) -> int:
        """Input tokens that are not padding."""
        read = () if self.sources is None else self.sources.segments
        return sum(segment.length for segment in (*self.segments, *read))

    @property
    def cost(self) -> int:
        """Tokens that are computed, padding included."""
        return self.tokens_BT.numel() + (0 if self.sources is None else self.sources.tokens_BS.numel())

    @property
    def learned_weight(self) -> float:
        """The sum of the targets' weights."""
        return float(self.targets.weight_N.sum())

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        if self.tokens_BT.device == device:
            return self
        mask_BT = None if self.mask_BT is None else self.mask_BT.to(device)
        return replace(
            self,
            tokens_BT=self.tokens_BT.to(device),
            positions_BT=self.positions_BT.to(device),
            mask_BT=mask_BT,
            targets=self.targets.to(device),
            sources=None if self.sources is None else self.sources.to(device),
            types_BT=None if self.types_BT is None else self.types_BT.to(device),
        )
