"""The gate of every export: what was written is read back and must say what the run's model says, on texts of the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from luthier.data.template import ChatTemplate, read_template
from luthier.errors import DataError, NotFound, ResourceError, RunMismatch
from luthier.export.parity import Limits, Parity, check, coarser, compare, limits_of
from luthier.export.readers import Reader, every_logit, first_stream, of_model, whole_text
from luthier.methods import ADAPTER, AdapterMethod
from luthier.models.language_model import LanguageModel
from luthier.models.outputs import Outputs
from luthier.objectives import Embedding
from luthier.prediction.passes import Said, class_logits, vectors
from luthier.prepared import check_recipe
from luthier.recipe import Recipe
from luthier.types import Example, IntArray, Origin

Announce = Callable[[str], None]
Kind = Literal["held-out rows", "training rows", "built-in texts"]

NUM_TEXTS = 20
LONGEST = 128
"""Tokens of a text that are compared; what follows is cut off."""

_TEXTS = (
    "Where is my parcel? It was sent on Monday, and the total was 42.50.",
    "The quick brown fox jumps over the lazy dog while the sun sets behind the hills.",
    "def add(a, b):\n    return a + b\n\nprint(add(2, 3))",
    '{"name": "lamp", "price": 19, "tags": ["light", "home"]}',
    "Water boils at 100 degrees Celsius at sea level, and at a lower temperature on a mountain.",
    "Once upon a time there was a small house at the edge of a large forest.",
)


@dataclass(frozen=True)
class Texts:
    """What is compared on. held_out: the rows that the run held out, all of them."""

    kind: Kind
    examples: Sequence[Example]
    held_out: Sequence[Example]


@dataclass(frozen=True)
class Checked:
    """One comparison that was passed. is_elsewhere: whether the reader is a program that others use the files in."""

    what: str
    reader: str
    is_elsewhere: bool
    texts: Kind
    parity: Parity

    def as_json(self) -> dict[str, Any]:
        """It as a part of the JSON document."""
        return {**{key: value for key, value in vars(self).items() if key != "parity"}, **asdict(self.parity)}


class Gate:
    """The run's model, what it is asked, and what was found to agree with it so far."""

    def __init__(self, recipe: Recipe, model: LanguageModel, announce: Announce) -> None:
        """Raises RunMismatch if the base is another than the run began with; what reading the rows raises, if they are needed."""
        _check_base(recipe, model)
        self.recipe, self.model = recipe, model
        template = self.template = read_template(recipe.data.chat_template, model.tokenizer, recipe.data.day)
        if template is not None and template.source is not None:
            model.tokenizer.chat_template = template.source
            stop_at(model, template)
        self.adapter = ADAPTER if isinstance(recipe.method, AdapterMethod) else None
        self.writes_text = model.anatomy.family.kind == "decoder" and model.anatomy.purpose == "words"
        self.texts = texts_of(recipe, model, self.writes_text, announce)
        self.said = self._said()
        self.passed: list[Checked] = []

    def _said(self) -> Callable[[Outputs], Said]:
        """What is compared of a model's outputs."""
        if self.writes_text:
            return every_logit
        if isinstance(self.recipe.objective, Embedding):
            return vectors(self.recipe.objective)
        return class_logits if self.model.anatomy.purpose == "classes" else every_logit

    @property
    def formats(self) -> tuple[str, ...]:
        """The number formats that the run's model computes in."""
        own = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[self.model.dtype]
        quantization = self.recipe.quantization
        computed = quantization.compute if quantization is not None and quantization.compute != "auto" else own
        return own, computed

    def own(self, model: LanguageModel, adapter: str | None) -> Reader:
        """A model of Luthier's own as a reader."""
        return of_model(model, adapter, self.said)

    def check(self, what: str, reader: Reader, *formats: str) -> None:
        """Compare with the run's model. formats: those that the files have their numbers in.

        Raises ExportMismatch, saying by how much, if more differs than these formats cost.
        """
        limits = coarser(limits_of(*self.formats, *formats), reader.limits)
        is_rounded = any(form not in self.formats for form in formats)
        if isinstance(self.recipe.objective, Embedding) and not self.writes_text:
            limits = Limits(limits.difference, None, None)  # vectors are no distributions
        parity = compare(self._pairs(reader))
        check(
            parity,
            limits,
            f"Read back by {reader.name} on {len(self.texts.examples)} {self.texts.kind}, {what}",
            "Nothing was written. Choose a finer --dtype."
            if is_rounded
            else "Nothing was written. The run's base may not be what it was trained on: see its recipe and provenance.",
        )
        self.passed.append(Checked(what, reader.name, reader.is_elsewhere, self.texts.kind, parity))

    def _pairs(self, reader: Reader) -> Iterator[tuple[Tensor, Tensor]]:
        trained = self.own(self.model, self.adapter).say(self.texts.examples)
        return zip(trained, reader.say(self.texts.examples), strict=True)

    def told_texts(self) -> list[tuple[str, IntArray]]:
        """Texts and the run's tokens of them, those of the built-in texts and what the compared rows say."""
        tokenizer = self.model.tokenizer
        rows = [str(tokenizer.decode(first_stream(example))) for example in self.texts.examples]
        return [(text, _tokens(self.model, text)) for text in (*_TEXTS, *rows)]


def texts_of(recipe: Recipe, model: LanguageModel, writes_text: bool, announce: Announce) -> Texts:
    """The first rows that the run held out; without any, the first that it trained on.

    Where the rows cannot be read any more, texts of our own serve a model that writes text. For one the rows are compared at
    every token, for another at what it learns. Raises, for another, what reading the rows raises.
    """
    try:
        prepared = check_recipe(recipe, announce)
    except (NotFound, DataError, ResourceError) as error:
        if not writes_text:
            raise
        announce(f"The run's rows cannot be read ({error}), so texts of Luthier's own are compared.")
        origin = Origin("built-in", 1)
        return Texts("built-in texts", [whole_text(_tokens(model, text), origin) for text in _TEXTS], ())
    held_out = prepared.dataset.validation
    rows = held_out or prepared.first_rows
    first = [rows[index] for index in range(min(NUM_TEXTS, len(rows)))]
    if writes_text:
        first = [whole_text(first_stream(example)[:LONGEST], example.origin) for example in first]
    kind: Kind = "held-out rows" if held_out else "training rows"
    return Texts(kind, [replace(example, document=index) for index, example in enumerate(first)], held_out)


def _tokens(model: LanguageModel, text: str) -> IntArray:
    return np.array(model.tokenizer.encode(text, add_special_tokens=False), dtype=np.int64)


def stop_at(model: LanguageModel, template: ChatTemplate) -> None:
    """Add the end of the template's answers to what ends those of a decoder that writes, so that other programs stop there too."""
    end, anatomy = template.end_of_turn, model.anatomy
    if end is None or anatomy.purpose != "words" or anatomy.encoder is not None or end.id in model.stop_ids:
        return
    ends = [*sorted(model.stop_ids), end.id]
    model.hf.config.eos_token_id = ends  # transformers writes the other config by this one where it made it
    if model.hf.generation_config is not None:
        model.hf.generation_config.eos_token_id = ends


def _check_base(recipe: Recipe, model: LanguageModel) -> None:
    """Raise RunMismatch if the model that the adapter is put on is not the one that it was trained on."""
    begun = recipe.provenance
    if recipe.method.tunes_base or begun is None or begun.model_sha256 == model.identity.sha256:
        return
    raise RunMismatch(
        f"The model {recipe.model.name} is not what this run was begun with: its hash was {begun.model_sha256[:12]}…, and is "
        f"now {model.identity.sha256[:12]}….",
        "Put the old files back, or name them in the run's recipe.",
        field="provenance.model_sha256",
    )
