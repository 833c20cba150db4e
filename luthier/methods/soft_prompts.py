"""What methods have in common that put virtual tokens before every document.

A document begins with as many placeholder tokens as the method asks for (`data.placeholders`), at positions 0 to V − 1,
and its own tokens go on from position V. A soft prompt replaces the placeholders' embeddings. It lives in the space of
what the embedding gives, so after the factor by which some families (Gemma) scale its rows, as peft's do. An encoder's head
for classes still reads the first token of the document itself (peft's reads the first virtual one), or the mean of the
document's own tokens, or a mask that stands between prompt and document, if the method puts one there: it takes one more
placeholder. In an encoder-decoder all this is so for the source, and the decoder's tokens are as they were.

Shapes: V virtual tokens, D width of the embedding, N tokens, M placeholders among them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from luthier.errors import RecipeError
from luthier.methods.adapter import AdapterMethod, generator_of, moved
from luthier.methods.adapter_attachment import AdapterAttachment
from luthier.methods.adapter_files import AdapterFile
from luthier.methods.bank import AdaptedEmbedding, AdaptedLayer, adapted
from luthier.methods.contract import Group
from luthier.methods.prompt_files import ENCODER, TABLE
from luthier.methods.rows_layers import OverRows
from luthier.models.call import Run, current_call
from luthier.models.language_model import LanguageModel
from luthier.models.virtual_tokens import VirtualTokens, early_in

_STARTS = frozenset({"init", "text"})


class PromptSource(nn.Module, ABC):
    """Where the rows of a soft prompt come from; of its parameters, those that require a gradient train."""

    @abstractmethod
    def forward(self) -> Tensor:
        """The rows, fp32, one for each virtual token."""

    def penalty(self) -> Tensor | None:
        """What is added to the mean loss of a step, whatever the data; None for nothing."""
        return None

    def file_tensors(self) -> dict[str, Tensor]:
        """What an adapter file holds, by name: the rows, and what it takes to go on training."""
        return {TABLE: self().detach(), **{name: tensor.detach() for name, tensor in self.named_parameters()}}


class RowSource(PromptSource):
    """Rows that train themselves."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.prompt_embeddings = nn.Parameter(rows.float())

    def forward(self) -> Tensor:
        """The rows."""
        return self.prompt_embeddings


class PromptBranch(OverRows):
    """A soft prompt at the embedding: its rows for the placeholders, the base's for all other tokens.

    in_sources: whether the placeholders stand before what an encoder reads. mask: the token that one more placeholder, behind
    those of the prompt, stands for; None if there is none.
    """

    def __init__(self, source: PromptSource, num_virtual: int, in_sources: bool, mask: int | None) -> None:
        super().__init__()
        self.source = source
        self.num_virtual = num_virtual
        self.in_sources = in_sources
        self.mask = mask

    @property
    def tensors(self) -> dict[str, nn.Parameter]:
        """None of the layer's own: the attachment names those of the source."""
        return {}

    def forward(self, tokens_N: Tensor, layer: AdaptedEmbedding, run: Run) -> Tensor:
        """The embeddings (N, D) of a run's tokens."""
        call = current_call()
        if call.is_source != self.in_sources:
            return self.rows(tokens_N, layer, run)
        assert call.positions_N is not None, "a stack is called with positions"
        own_N = call.positions_N[run.start : run.stop]
        if self.mask is not None:
            tokens_N = tokens_N.masked_fill(own_N == self.num_virtual, self.mask)
        rows_ND = self.rows(tokens_N, layer, run)
        at_M, position_M = early_in(own_N, self.num_virtual, run, call.segments)
        if len(at_M) == 0:  # each step of generation but the first
            return rows_ND
        rows_VD: Tensor = self.source()
        return rows_ND.index_copy(0, at_M, rows_VD.to(rows_ND.dtype).index_select(0, position_M))

    def merge_into(self, layer: AdaptedLayer) -> None:
        """Refused."""
        raise _unmergeable()


def _unmergeable() -> RecipeError:
    return RecipeError(
        "Virtual tokens are input, not weights, so they cannot be merged into the base.",
        "Keep the adapter beside the base model.",
        field="method.kind",
    )


class SoftPromptAttachment(AdapterAttachment):
    """Virtual tokens at work; the layers that hold a branch are the embedding, for a soft prompt, or none, for a prefix."""

    def __init__(
        self,
        method: AdapterMethod,
        model: LanguageModel,
        name: str,
        source: PromptSource,
        layers: Mapping[str, AdaptedLayer],
        *,
        sizes: Mapping[str, int] | None = None,
        beside: Mapping[str, nn.Parameter] | None = None,
    ) -> None:
        """sizes: what peft's config says of the model. beside: trainable tensors that are no part of the source."""
        own = dict(source.named_parameters())
        trained = {key: tensor for key, tensor in own.items() if tensor.requires_grad}
        frozen = {key: tensor for key, tensor in own.items() if not tensor.requires_grad}
        super().__init__(method, model, name, layers, shared={**trained, **(beside or {})}, frozen=frozen)
        self.source = source
        self.beside = dict(beside or {})
        self.extra = {**(sizes or {}), "num_transformer_submodules": 1}

    @property
    def num_virtual(self) -> int:
        """The placeholders that a document must begin with; in an encoder-decoder, the source."""
        return self.model.num_virtual(self.name)

    @property
    def num_virtual_answer(self) -> int:
        """The placeholders that an encoder-decoder's answer must begin with."""
        return self.model.num_virtual_answer(self.name)

    @property
    def lowest_changed(self) -> int | None:
        """None for a soft prompt, which is reached through the embedding; the first for a prefix, which all layers see."""
        return None if self.layers else 0

    @property
    def occupied(self) -> frozenset[str]:
        """The beginning of a document, too."""
        return super().occupied | {"the beginning of every document"}

    def extra_loss(self) -> Tensor | None:
        """The source's own penalty."""
        return self.source.penalty()

    def file_tensors(self) -> dict[str, Tensor]:
        """What the adapter's file holds, by name."""
        return {**self.source.file_tensors(), **{name: tensor.detach() for name, tensor in self.beside.items()}}

    def write(self, folder: Path, announce: Callable[[str], None]) -> None:
        """Write the adapter; say so where peft would read the class of a text at another token."""
        super().write(folder, announce)
        anatomy = self.model.anatomy
        is_read_elsewhere = anatomy.purpose == "classes" and anatomy.family.pooled == "first"
        if self.layers and is_read_elsewhere and not self.model.virtual_tokens[self.name].reads_last:
            announce(
                "Other tools take the mean of a text's tokens over the virtual ones too; Luthier takes it of the text alone."
                if anatomy.reads_mean
                else "Other tools read an encoder's class at the first virtual token of this prompt; Luthier reads it at the "
                "first token of the text."
            )

    def load(self, file: AdapterFile) -> None:
        """Take the tensors of a file. Raises RecipeError, too, if its network does not make its rows."""
        super().load(file)
        rows, wanted = self.source().detach().cpu(), file.tensors[TABLE].float()
        if not torch.allclose(rows, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max())):
            raise RecipeError(
                f"The network in the adapter's folder does not make the rows of its {TABLE}, which another tool changed.",
                f"Take {ENCODER} away to go on with the rows alone, if the method can.",
                file=file.path,
            )

    def merge(self) -> None:
        """Refused: no weight of the base computes what virtual tokens do."""
        raise _unmergeable()


class SoftPromptMethod(AdapterMethod):
    """A method that trains virtual tokens before every document."""

    free_fields: ClassVar[frozenset[str]] = frozenset()

    num_virtual_tokens: int = Field(
        20, ge=1, description="Virtual tokens before every document; they take room in the model's context."
    )

    @abstractmethod
    def source(self, model: LanguageModel, generator: torch.Generator) -> PromptSource:
        """Where the prompt's rows come from, fresh, on the CPU. Raises RecipeError if the model has no place for it."""

    def place(self, model: LanguageModel, name: str, seed: int, fast: bool) -> AdapterAttachment:
        """A fresh prompt at the embedding."""
        source = moved(self.source(model, generator_of(self.kind, seed)), model.device)
        layer = place_prompt(model, name, source, self.num_virtual_tokens)
        sizes = {"token_dim": width_of(model), "num_layers": len(model.anatomy.layers)}
        return SoftPromptAttachment(self, model, name, source, {layer.name: layer}, sizes=sizes)

    def grouped(self, tensors: dict[str, nn.Parameter]) -> tuple[Group, ...]:
        """One group that does not decay: the rows of a prompt have no reason to be small."""
        return (Group(tensors, decays=False),)


def place_prompt(
    model: LanguageModel, name: str, source: PromptSource, num_virtual: int, mask: int | None = None
) -> AdaptedLayer:
    """The embedding, with the prompt of an adapter at work there; behind it the token `mask`, which the head is to read."""
    layer = adapted(model, model.anatomy.embedding)
    layer.add(name, PromptBranch(source, num_virtual, in_sources=model.anatomy.encoder is not None, mask=mask))
    has_mask = mask is not None
    model.add_virtual_tokens(name, VirtualTokens(num_virtual + has_mask, reads_last=has_mask))
    return layer


class WordPromptMethod(SoftPromptMethod):
    """A method whose virtual tokens may begin as words."""

    init: Literal["vocabulary", "text", "random"] | None = Field(
        None,
        description="How the virtual tokens begin: as random tokens of the vocabulary, as the words of `text`, or at random; unset: vocabulary, but random where a network makes them.",
    )
    text: str | None = Field(
        None, description="With init text: the words that they begin as, repeated or cut to their number."
    )

    @model_validator(mode="after")
    def _start_is_sound(self) -> Self:
        if (self.init == "text") != (self.text is not None):
            raise ValueError("text and init go together: give both (init: text) or neither.")
        if self.begin_from is not None and self.init is not None:
            raise ValueError("With from, the virtual tokens begin as they are in the adapter; leave init and text out.")
        return self

    def file_settings(self) -> dict[str, Any]:
        """As for any adapter, without how it began."""
        return {field: value for field, value in super().file_settings().items() if field not in _STARTS}

    def first_tokens(self, model: LanguageModel, generator: torch.Generator) -> Tensor:
        """The tokens that the virtual ones begin as, shape (V,). Raises RecipeError for a text without tokens."""
        count = self.num_virtual_tokens
        if self.text is None:
            return torch.randint(0, min(model.vocab_size, len(model.tokenizer)), (count,), generator=generator)
        found = tokens_of(model, self.text)
        if not found:
            raise RecipeError("The text to begin as has no tokens.", "Write a word or more.", field="method.text")
        return torch.tensor((found * (count // len(found) + 1))[:count])

    def first_rows(self, model: LanguageModel, generator: torch.Generator) -> Tensor:
        """The embeddings (V, D) that a soft prompt begins as; at random, uniform in ±0.5."""
        if self.init == "random":
            return torch.rand(self.num_virtual_tokens, width_of(model), generator=generator) - 0.5
        return embedded(model, self.first_tokens(model, generator))


def tokens_of(model: LanguageModel, text: str) -> list[int]:
    """The tokens of a text alone, without those that begin or end a document."""
    tokens: list[int] = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    return tokens


@torch.no_grad()
def embedded(model: LanguageModel, tokens_V: Tensor) -> Tensor:
    """What the base's embedding gives for tokens, fp32 on the CPU, shape (V, D)."""
    rows_VD: Tensor = model.hf.get_submodule(model.anatomy.embedding)(tokens_V.to(model.device))
    return rows_VD.float().cpu()


def width_of(model: LanguageModel) -> int:
    """D: the width of the embedding, which in some models is not that of the layers."""
    return int(model.hf.get_submodule(model.anatomy.embedding).get_parameter("weight").shape[1])
