"""The words that all folders share.

Rows become records (what a person wrote), records become examples (token ids and what is learned), examples become batches.

Shape suffixes: B rows, T tokens of a row, N learned targets, P tokens of an example over all its parts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    import torch

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]

Layout = Literal["packed", "bucketed"]

Pooled = Literal["first", "last"]
"""Which token of a text a head over classes reads."""


class Settings(BaseModel):
    """What a user writes: typed, frozen, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)


# ── records: what a person wrote ────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Origin:
    """Where a row came from: its file and its 1-based line (for JSON and Parquet, its 1-based row)."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}"


@dataclass(frozen=True)
class Message:
    """One turn. `learn` is the row's own wish (weight 1 or 0); None leaves it to the recipe.

    `extra` holds what a chat template may use beside role and content, such as `tool_calls` and `name`.
    """

    role: str
    content: str
    learn: bool | None = None
    extra: tuple[tuple[str, Any], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The message in the form that chat templates take."""
        return {"role": self.role, "content": self.content, **dict(self.extra)}


@dataclass(frozen=True)
class Conversation:
    """A chat; `tools` are the function schemas offered to the model, in OpenAI form."""

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Completion:
    """A prompt and the text that should follow it."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class PlainText:
    """Text learned as a whole."""

    text: str


@dataclass(frozen=True)
class Labelled:
    """A text, or a pair of texts, and the class that it belongs to."""

    text: str
    pair: str | None
    label: str


Record = Conversation | Completion | PlainText | Labelled


@dataclass(frozen=True)
class Rendered:
    """A record as one run of tokens. `weight_T[t]` is how much the prediction *of* token t counts; 0 is not learned.

    label: the class of the whole text, where that is what the record teaches. types_T: 1 for the tokens of a second text,
    where the tokenizer tells them apart. num_closing: how many tokens at the end close the text and are no part of it.
    num_needed: how many tokens before those it takes for the row to mean anything. pooled: which token a class is read at.
    """

    tokens_T: IntArray
    weight_T: FloatArray
    label: str | None = None
    types_T: IntArray | None = None
    num_closing: int = 0
    num_needed: int = 0
    pooled: Pooled = "last"

    def cut(self, length: int) -> Rendered:
        """The row cut at its end to so many tokens; what closes the text stays."""
        kept = np.arange(len(self.tokens_T))
        kept = np.concatenate([kept[: length - self.num_closing], kept[len(kept) - self.num_closing :]])
        types_T = None if self.types_T is None else self.types_T[kept]
        return replace(self, tokens_T=self.tokens_T[kept], weight_T=self.weight_T[kept], types_T=types_T)


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
    part of answer `sample_N[n]` (0 for the only answer; 0 and 1 for a preference pair). Where classes of whole texts are
    learned, the source is the token that the head reads, and the token is the number of the class.

    num_virtual: how many of the tokens are placeholders for virtual tokens of a soft prompt.
    types_P: 1 for the tokens of a second text; None where there is none.
    """

    parts: tuple[Part, ...]
    source_N: IntArray
    token_N: IntArray
    weight_N: FloatArray
    sample_N: IntArray
    document: int
    origin: Origin
    num_virtual: int = 0
    types_P: IntArray | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens over all parts, placeholders included: what is computed."""
        return sum(len(part.tokens_T) for part in self.parts)

    @property
    def num_real_tokens(self) -> int:
        """Tokens over all parts that came from the row."""
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
    """Learned targets of a batch: `source_N` indexes the batch's tokens flattened to B·T."""

    source_N: torch.Tensor
    token_N: torch.Tensor
    weight_N: torch.Tensor
    sample_N: torch.Tensor


@dataclass(frozen=True)
class Batch:
    """One micro-batch, in one of two layouts with the same targets and counts.

    packed: B = 1; `segments` tile the row in order; `mask_BT` is None. Nothing is padding.
    bucketed: right-padded rows, one segment each at `start = row · T`; `mask_BT` is True on real tokens.

    `documents` gives for each segment the document that it came from: random draws are keyed by it.
    types_BT: 1 for the tokens of a row's second text; None where no row has one.
    """

    layout: Layout
    tokens_BT: torch.Tensor
    positions_BT: torch.Tensor
    mask_BT: torch.Tensor | None
    segments: tuple[Segment, ...]
    documents: tuple[int, ...]
    targets: Targets
    types_BT: torch.Tensor | None = None

    @property
    def num_real_tokens(self) -> int:
        """Input tokens that are not padding."""
        return sum(segment.length for segment in self.segments)

    @property
    def learned_weight(self) -> float:
        """The sum of the targets' weights."""
        return float(self.targets.weight_N.sum())

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        if self.tokens_BT.device == device:
            return self
        targets = Targets(
            self.targets.source_N.to(device),
            self.targets.token_N.to(device),
            self.targets.weight_N.to(device),
            self.targets.sample_N.to(device),
        )
        mask_BT = None if self.mask_BT is None else self.mask_BT.to(device)
        return replace(
            self,
            tokens_BT=self.tokens_BT.to(device),
            positions_BT=self.positions_BT.to(device),
            mask_BT=mask_BT,
            targets=targets,
            types_BT=None if self.types_BT is None else self.types_BT.to(device),
        )
