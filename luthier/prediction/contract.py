"""What models that do not write have in common: how they are loaded, and what the command line shows of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from luthier.data.rendering import Renderer
from luthier.data.whole_texts import Whole
from luthier.errors import DataError, UsageError
from luthier.models.language_model import LanguageModel
from luthier.models.outputs import Outputs
from luthier.objectives import Objective
from luthier.ops.workers import Workers
from luthier.prediction.passes import Passes, Said, check_fits, said_of_each
from luthier.types import Example, Origin


@dataclass(frozen=True)
class Told:
    """What a model has to say of some texts: lines for people, and JSON values of each text and of all together."""

    lines: tuple[str, ...]
    answers: Sequence[Mapping[str, object]]
    together: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Reader(ABC):
    """A model that reads and does not write: its weights, how texts become tokens, and the adapter to use (None: none).

    does: what it does, in words. asking: the options that `luthier generate` takes for it. base_answers: whether the model
    that the run began from can be asked the same, its head being no new one. chooses: whether it is given options.
    """

    does: ClassVar[str]
    asking: ClassVar[str] = "--prompt TEXT"
    base_answers: ClassVar[bool] = False
    chooses: ClassVar[bool] = False

    language_model: LanguageModel
    renderer: Renderer
    adapter: str | None

    @abstractmethod
    def tell(self, texts: Sequence[str], options: Sequence[str] = ()) -> Told:
        """What it has to say of texts; `options` are those that a question may be answered by. Raises as its own methods."""

    def _examples(self, objective: Objective, records: Sequence[Whole]) -> list[Example]:
        """Records as the objective has them in training. Raises: DataError for one beyond the model's context."""
        examples = []
        for index, record in enumerate(records):
            origin = Origin("text", index + 1)
            examples.append(objective.example(self.renderer.render_whole(record, origin), index, origin))
        check_fits(self.language_model, self.adapter, examples)
        return examples

    def _said(self, examples: Sequence[Example], say: Callable[[Outputs], Said]) -> list[Tensor]:
        """What the model says of each."""
        with Workers(1) as workers:
            return said_of_each(self.language_model, self.adapter, examples, say, Passes(workers), "reading")


def check_no_options(options: Sequence[str], does: str) -> None:
    """Raise UsageError for options that a model does not choose among."""
    if options:
        raise UsageError(f"The model {does}: it does not choose among options.", "Leave out --option.")


def check_whole(text: str) -> None:
    """Raise DataError for half of a character: what the system makes of bytes that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        found = f"A prompt holds {error.object[error.start]!a}, which is no whole character."
        raise DataError(found, "Give it as UTF-8 text.") from error
