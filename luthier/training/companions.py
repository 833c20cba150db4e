"""Other models that an objective hears of each batch's targets: at hand, or asked once for all rows before step 1.

A companion reads the very rows of a batch, but lays them out for itself: it may have another layout, and virtual tokens of its
own. Both layouts hold the same targets in the same order, so what it says of the n-th target is of the batch's n-th.

What is asked once is kept in the run's folder (`luthier.store.rows`): an entry counts once it is whole on the disk, so that what
a dead process left goes on. The batches that it is asked in depend on the rows alone, never on what was kept before, and so a
run that is resumed has the same bits.

Shapes: N targets, K kept words, L = K + 1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from luthier.data.batches import evaluation_batches
from luthier.data.facts import facts_of, laid_out
from luthier.data.packing import collate
from luthier.data.placeholders import with_placeholders
from luthier.errors import DataError
from luthier.models.language_model import LanguageModel
from luthier.models.outputs import Beside, KnownLogprobs, Outputs
from luthier.objectives.contract import Kept
from luthier.ops.imitation import KnownWords, likeliest_words
from luthier.ops.workers import Workers
from luthier.store.rows import Bytes, RowCache
from luthier.types import Batch, Example

FOLDER = "companions"
Announce = Callable[[str], None]


class Voice(ABC):
    """What says something of a batch's targets. learns: whether its say has a gradient, because it trains beside the model."""

    learns: ClassVar[bool] = False

    @abstractmethod
    def say(self, batch: Batch) -> Beside:
        """What it says of them, in their order."""

    def knows(self, batch: Batch) -> bool:
        """Whether it can say something of a batch: a step may hold others, which no loss asks it about."""
        return True


@dataclass(frozen=True)
class Companions:
    """All of an objective's companions, by their roles."""

    voices: Mapping[str, Voice]

    def beside(self, batch: Batch) -> Mapping[str, Beside]:
        """What each says of a batch; it is asked when it is first read, and now if it learns: before the model keeps anything."""
        heard = _Heard(self.voices, batch)
        for role, voice in self.voices.items():
            if voice.learns and voice.knows(batch):
                _ = heard[role]
        return heard


ALONE = Companions({})
"""No companions."""


class _Heard(Mapping[str, Beside]):
    """What is said of one batch, which one thread computes."""

    def __init__(self, voices: Mapping[str, Voice], batch: Batch) -> None:
        self._voices = voices
        self._batch = batch
        self._said: dict[str, Beside] = {}

    def __getitem__(self, role: str) -> Beside:
        if role not in self._said:
            voice = self._voices[role]
            with nullcontext() if voice.learns else torch.no_grad():
                self._said[role] = voice.say(self._batch)
        return self._said[role]

    def __iter__(self) -> Iterator[str]:
        return iter(self._voices)

    def __len__(self) -> int:
        return len(self._voices)


@dataclass(frozen=True)
class Speaker:
    """A frozen model and the adapter that it speaks under; shares_prefix: as `collate` takes it."""

    model: LanguageModel
    adapter: str | None
    shares_prefix: bool = False

    def placed(self, example: Example) -> Example:
        """The example behind what the model's adapter begins with."""
        return with_placeholders(
            example, self.model.num_virtual(self.adapter), self.model.num_virtual_answer(self.adapter)
        )

    @property
    def shares(self) -> bool:
        """Whether rows computed together share the tokens of a common beginning."""
        return self.shares_prefix and self.model.shares_tokens(self.adapter)

    def of_batch(self, batch: Batch) -> Outputs:
        """What the model says of a batch that is laid out for it."""
        return self.model.forward(batch.to(self.model.device), self.adapter)


@dataclass(frozen=True)
class AtHand(Voice):
    """A model that is asked at each step. rows: the examples, without placeholders, by their documents."""

    speaker: Speaker
    rows: Mapping[int, Example]

    def say(self, batch: Batch) -> Outputs:
        """What it says of a batch of these rows."""
        model, placed = self.speaker.model, [self.speaker.placed(self.rows[row]) for row in batch.rows]
        own = collate(placed, model.layout, model.pad_id, shares_prefix=self.speaker.shares)
        return self.speaker.of_batch(own)


class _ByDocument(Mapping[int, Example]):
    """Examples by their documents; those that are made when they are asked for stay so."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self._examples = examples
        self._places = {example.document: place for place, example in enumerate(examples)}
        assert len(self._places) == len(examples), "every row has a document number of its own"

    def __getitem__(self, document: int) -> Example:
        return self._examples[self._places[document]]

    def __iter__(self) -> Iterator[int]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def by_document(examples: Sequence[Example]) -> Mapping[int, Example]:
    """Examples by their documents, of which no two are the same."""
    return _ByDocument(examples)


# ── what is kept ────────────────────────────────────────────────────────────────────────────────────────────────────


class Keeping(ABC):
    """What of a model's say is kept of each target, as a row of bytes."""

    @property
    @abstractmethod
    def row_bytes(self) -> int:
        """How many bytes that is."""

    @abstractmethod
    def rows(self, outputs: Outputs) -> Bytes:
        """What a model says of a batch's targets, shape (N, row_bytes)."""

    @abstractmethod
    def said(self, rows: Bytes, device: torch.device) -> Beside:
        """The same again, from such rows."""


@dataclass(frozen=True)
class Words(Keeping):
    """The likeliest words. num_words: how many words the distributions are over."""

    kept: Kept
    num_words: int

    @property
    def row_bytes(self) -> int:
        """A number for each word, and log p of each and of all others."""
        return kept_row_bytes(self.kept)

    def rows(self, outputs: Outputs) -> Bytes:
        """The likeliest words of each target."""
        head, kept = outputs.head.logits, self.kept
        known = likeliest_words(outputs.hidden_ND, head, kept.count, self.num_words, kept.temperature)
        tokens, logprobs = known.token_NK.to("cpu", torch.int32).numpy(), known.logprob_NL.cpu().numpy()
        return np.concatenate([np.ascontiguousarray(each).view(np.uint8) for each in (tokens, logprobs)], axis=1)

    def said(self, rows: Bytes, device: torch.device) -> KnownWords:
        """The same again."""
        split = 4 * self.kept.count
        token_NK = torch.from_numpy(rows[:, :split].copy().view(np.int32)).long()
        logprob_NL = torch.from_numpy(rows[:, split:].copy().view(np.float32))
        return KnownWords(token_NK.to(device), logprob_NL.to(device), self.num_words)


@dataclass(frozen=True)
class Logprobs(Keeping):
    """log p of each target's token."""

    @property
    def row_bytes(self) -> int:
        """One number."""
        return 4

    def rows(self, outputs: Outputs) -> Bytes:
        """log p of each target."""
        return np.ascontiguousarray(outputs.logprob_N.float().cpu().numpy()[:, None]).view(np.uint8)

    def said(self, rows: Bytes, device: torch.device) -> KnownLogprobs:
        """The same again."""
        return KnownLogprobs(torch.from_numpy(rows.copy().view(np.float32)[:, 0]).to(device))


class KeptSay(Voice):
    """What a model said of the targets of all rows, kept in a folder; of each target one row of bytes."""

    def __init__(self, folder: Path, keeping: Keeping, examples: Sequence[Example], lessen: str | None = None) -> None:
        """Open what is kept. examples: all rows. lessen: as `RowCache` takes it."""
        self.keeping = keeping
        self._counts = {row: example.num_learned for row, example in by_document(examples).items()}
        self._rows = RowCache(folder, keeping.row_bytes, lessen)

    @property
    def missing(self) -> frozenset[int]:
        """The documents of which nothing whole is kept, though they have targets."""
        return frozenset(row for row, count in self._counts.items() if count and self._rows.get(str(row)) is None)

    def close(self) -> None:
        """Let go of the file."""
        self._rows.close()

    def keep(self, batch: Batch, outputs: Outputs) -> None:
        """Keep what a model says of a batch."""
        rows, row_N = self.keeping.rows(outputs), batch.targets.row_N.cpu().numpy()
        for index, row in enumerate(batch.rows):
            own = rows[row_N == index]
            if len(own):
                self._rows.put(str(row), own)

    def say(self, batch: Batch) -> Beside:
        """What is kept of a batch. Raises DataError if some of it is no longer there."""
        none = np.empty((0, self.keeping.row_bytes), np.uint8)
        rows = np.concatenate([*(self._read(row) for row in batch.rows if self._counts[row]), none])
        return self.keeping.said(rows, batch.tokens_BT.device)

    def _read(self, row: int) -> Bytes:
        found = self._rows.get(str(row))
        if found is None or len(found) != self._counts[row]:
            raise DataError(
                "What another model said of a row before step 1 is no longer whole on the disk.",
                "Go on with 'luthier resume': it is asked again.",
                field="objective",
            )
        return found


def kept_row_bytes(kept: Kept) -> int:
    """What is kept of a target's likeliest words: a number for each, and log p of each and of all others."""
    return 4 * kept.count + 4 * (kept.count + 1)


def ask_once(say: KeptSay, speaker: Speaker, examples: Sequence[Example], budget: int, workers: Workers) -> None:
    """Have a model say of all rows what is missing of it. budget: most tokens computed at once, if no row is longer."""
    missing, model = say.missing, speaker.model
    placed = [speaker.placed(example) for example in examples if example.num_learned]
    budget = max(budget, int(laid_out(facts_of(placed), model.layout).max(initial=0)))
    batches = evaluation_batches(placed, budget, 1, model.layout, model.pad_id, shares_prefix=speaker.shares)
    count = min(workers.count, len(batches))

    def share_of(worker: int) -> Callable[[], None]:
        def compute() -> None:
            for batch in batches[worker::count]:
                if workers.are_stopping.is_set():
                    return
                if missing.intersection(batch.rows):
                    with torch.inference_mode():
                        say.keep(batch, speaker.of_batch(batch))

        return compute

    workers.run([share_of(worker) for worker in range(count)])


def with_beside(outputs: Outputs, beside: Mapping[str, Beside]) -> Outputs:
    """What a model says of a batch, and what others say of it."""
    return replace(outputs, beside=beside) if beside else outputs
