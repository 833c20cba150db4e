"""Prefix tuning: learned keys and values before the document in every attention layer.

Li & Liang 2021, https://arxiv.org/abs/2101.00190:  in layer ℓ, K = [Pk^ℓ; K] and V = [Pv^ℓ; V], each prefix (V, K, E); queries
are unchanged. The keys are those after the rotation of positions, as in a cache; the document's positions begin at V, as
in peft, or, with `takes_positions: false`, at 0, as in the `adapters` library. Files are those of that library then, and
peft's otherwise: the same numbers mean another function under each.

Keys and values train themselves, or, with `projection`, as the paper has it, a network makes them in training:

    P = W₂ tanh(W₁ e + c₁) + c₂,   e (V, D),   P (V, 2 L K E)

By default they begin as the true keys and values of random tokens of the vocabulary (`text`: of your own words; the paper
found real words the better start). `random` is standard normal, as in peft. No start is the base model: even a key of
zeros takes a share of the softmax.

How it is computed: V placeholder tokens flow through the model, and in each layer the attention exchanges their keys and
values for the learned ones; what else becomes of them is never seen. In a layer with a sliding window the prefix goes out
of sight as real tokens of those positions do. Models whose attention is not Luthier's own (Falcon, and with it attention
by linear biases) are refused.

An encoder-decoder has three prefixes a pair of layers, as the paper's BART: one before the encoder's own keys and values,
one before the decoder's, and one before those that the decoder makes of what the encoder gave. Source and answer then both
begin at V, a bias by distance (T5's) counts the prefix as that many tokens, and the files are Luthier's own. With
`takes_positions: false` both begin at 0, and T5's bias counts the prefix in a key's place but not in a query's, as in the
`adapters` library: to query q, key k of the text is V + k − q away, and virtual token v is v − q away. With `projection`
each of the three has a network of its own, as in the paper's code and that library. L below counts the layers of all three.

Merges: no. Deep backward: yes, to the first layer's keys and values. Over 4 bits: yes. Identity at the start: no.
Trainable numbers: 2 L V K E; with projection P (VD + DH + H) + H · 2LKE + 2LKE, of which 2 L V K E are kept.
Shapes: L layers (encoder's + 2 · decoder's in an encoder-decoder), V virtual tokens, K key/value heads, E head width, D width of the embedding, H width of the network,
P prefixes with a network of their own: 3 in an encoder-decoder, else 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from transformers import DynamicCache

from luthier.errors import RecipeError
from luthier.methods.adapter import generator_of, moved
from luthier.methods.adapter_attachment import AdapterAttachment
from luthier.methods.adapter_files import AdapterFile, Form, OwnForm, adapter_folder, read_config
from luthier.methods.adapterhub_files import check_model_type, is_hub_file
from luthier.methods.adapterhub_prefix import ARCHITECTURES, WIDTH, has_hub_prefixes, read_hub_prefix, write_hub_prefix
from luthier.methods.contract import Group, Kin, Traits
from luthier.methods.peft_files import CONFIG
from luthier.methods.prompt_files import TABLE, PromptForm
from luthier.methods.prompt_networks import draw_as_torch_does, empty_linear
from luthier.methods.soft_prompts import PromptSource, RowSource, SoftPromptAttachment, WordPromptMethod, width_of
from luthier.models.anatomy import Anatomy
from luthier.models.language_model import LanguageModel
from luthier.models.virtual_tokens import VirtualTokens, attention_places, cached
from luthier.types import Batch, Segment, Sources, Targets


class PeftPrefixForm(PromptForm):
    """PREFIX_TUNING: a row of the table is a virtual token's keys and values, key before value and layer after layer."""

    def settings_of(self, config: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
        """The width of the network, if the prefix was made by one."""
        projection = config.get("encoder_hidden_size") if config.get("prefix_projection") else None
        return {"projection": projection, "init": "random", "takes_positions": True}

    def config_of(self, settings: dict[str, Any]) -> dict[str, Any]:
        """The same in peft's words."""
        width = settings["projection"]
        return {"prefix_projection": width is not None, "encoder_hidden_size": width}


class PrefixForm(Form):
    """The files of the library whose positions a prefix has.

    For encoder-decoders a form of our own in peft's place: it has no prefix for an encoder, and uses half of its table twice.
    """

    own: ClassVar[OwnForm] = OwnForm("prefix-tuning")
    peft: ClassVar[PeftPrefixForm] = PeftPrefixForm(title="prefix tuning", peft_type="PREFIX_TUNING")

    def read(self, source: str) -> AdapterFile:
        """The prefix of a run or a folder, in whichever form it lies there."""
        folder = adapter_folder(source, CONFIG, OwnForm.CONFIG)
        if (folder / OwnForm.CONFIG).is_file():
            file = self.own.read(source)
            return replace(file, settings={**file.settings, "init": "random"})
        return self.peft.read(source) if "peft_type" in read_config(folder / CONFIG) else read_hub_prefix(folder)

    def write(self, folder: Path, file: AdapterFile, anatomy: Anatomy, is_transposed: bool) -> None:
        """Write it into a folder that exists."""
        if not file.settings["takes_positions"]:
            write_hub_prefix(folder, file, anatomy)
        elif anatomy.encoder is not None:
            self.own.write(folder, file, anatomy, is_transposed)
        else:
            self.peft.write(folder, file, anatomy, is_transposed)


class PrefixTuning(WordPromptMethod):
    """Keys and values of virtual tokens in every layer."""

    family: ClassVar[Kin] = "soft-prompt"
    paper: ClassVar[str] = "Li & Liang 2021, https://arxiv.org/abs/2101.00190"
    count: ClassVar[str] = "2 L V K E; with projection P (VD + DH + H) + H · 2LKE + 2LKE"
    traits: ClassVar[Traits] = Traits(merges=False, deep_backward=True, over_4bit=True, identity_at_start=False)
    default_lr: ClassVar[float] = 5e-3
    form: ClassVar[PrefixForm] = PrefixForm()

    kind: Literal["prefix-tuning"] = "prefix-tuning"
    projection: int | None = Field(
        None,
        ge=1,
        description="Width of the network that makes the prefix in training (the paper: 512); unset: the prefix trains itself.",
    )

    takes_positions: bool = Field(
        True,
        description="Whether the document's positions begin after the prefix, as in peft; false: at 0, as in the adapters library.",
    )

    @model_validator(mode="after")
    def _a_network_begins_at_random(self) -> Self:
        if self.projection is not None and self.init not in (None, "random"):
            raise ValueError("With projection the prefix begins at random; leave init and text out.")
        return self

    def place(self, model: LanguageModel, name: str, seed: int, fast: bool) -> AdapterAttachment:
        """A fresh prefix in all layers."""
        if not model.anatomy.family.attends_by_interface:
            raise RecipeError(
                f"Models of type {model.hf.config.model_type!r} compute attention in a way that takes no learned prefix.",
                "Set method.kind to prompt-tuning, or choose a model of another family.",
                field="method.kind",
            )
        if not self.takes_positions and not has_hub_prefixes(model.hf.config):
            raise RecipeError(
                "Only for the files of the adapters library does a prefix take no positions, and that library has no "
                "prefixes for this model (fewer key heads than heads, a window, or another architecture).",
                f"Leave method.takes_positions out, or choose a model of type {', '.join(ARCHITECTURES)} without these.",
                field="method.takes_positions",
            )
        source = moved(self.source(model, generator_of(self.kind, seed)), model.device)
        layers, _, heads, width = sizes_of(model)

        def prefix() -> Tensor:
            rows: Tensor = source()
            return rows.view(-1, layers, 2, heads, width).permute(1, 2, 0, 3, 4)

        model.add_virtual_tokens(
            name, VirtualTokens(self.num_virtual_tokens, prefix, takes_positions=self.takes_positions)
        )
        sizes = {"token_dim": heads * width, "num_layers": layers, "num_attention_heads": heads}
        if not self.takes_positions:
            sizes = {WIDTH: width_of(model)}
        return SoftPromptAttachment(self, model, name, source, {}, sizes=sizes)

    def source(self, model: LanguageModel, generator: torch.Generator) -> PromptSource:
        """The prefix itself, or the network that makes it."""
        if self.projection is None and self.init != "random":
            states_LSVKE = states_of(model, self.first_tokens(model, generator))
            return RowSource(states_LSVKE.permute(2, 0, 1, 3, 4).flatten(1))
        layers, *sizes = sizes_of(model)
        of_layer = math.prod(sizes)
        if self.projection is None:
            return RowSource(torch.randn(self.num_virtual_tokens, layers * of_layer, generator=generator))
        shape = (self.num_virtual_tokens, width_of(model), self.projection)
        if model.anatomy.encoder is None:
            return PrefixNetwork(*shape, layers * of_layer, generator)
        encoder, decoder, cross = (
            PrefixNetwork(*shape, (places.stop - places.start) * of_layer, generator)
            for places in attention_places(model.anatomy)
        )
        return PrefixNetworks(encoder, decoder, cross)

    def check_fits(self, file: AdapterFile, model: LanguageModel) -> None:
        """Raise RecipeError if it is for another architecture, or a network made the prefix that the file does not hold."""
        if is_hub_file(file):
            check_model_type(file, model.anatomy)
        if file.settings["projection"] is not None and set(file.tensors) == {TABLE}:
            raise RecipeError(
                "The adapter holds the prefix that a network came to, but not the network.",
                "Begin from a run of Luthier, which keeps the network; or set prefix_projection to false in the "
                "adapter's config, to go on with the prefix itself.",
                file=file.path,
                field="method.from",
            )

    def grouped(self, tensors: dict[str, nn.Parameter]) -> tuple[Group, ...]:
        """The prefix, or what the network reads, which do not decay, and the network's weights, which do."""
        weights = {name: tensor for name, tensor in tensors.items() if ".network." in f".{name}"}
        own = {name: tensor for name, tensor in tensors.items() if name not in weights}
        return tuple(group for group in (Group(own, decays=False), Group(weights)) if group.tensors)


class PrefixNetwork(PromptSource):
    """e, and the network that makes the rows of a prefix of it."""

    def __init__(self, count: int, width: int, hidden: int, row: int, generator: torch.Generator) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(count, width, generator=generator))
        self.network = nn.Sequential(empty_linear(width, hidden), nn.Tanh(), empty_linear(hidden, row))
        draw_as_torch_does(self, generator)

    def forward(self) -> Tensor:
        """The rows (V, 2 L K E)."""
        made: Tensor = self.network(self.embedding)
        return made


class PrefixNetworks(PromptSource):
    """The networks of an encoder-decoder's three prefixes: the encoder's, the decoder's, and that of its cross-attention."""

    def __init__(self, encoder: PrefixNetwork, decoder: PrefixNetwork, cross: PrefixNetwork) -> None:
        super().__init__()
        self.encoder, self.decoder, self.cross = encoder, decoder, cross

    def forward(self) -> Tensor:
        """The rows (V, 2 L K E), each prefix's part beside the others."""
        return torch.cat([self.encoder(), self.decoder(), self.cross()], dim=1)


def states_of(model: LanguageModel, tokens_V: Tensor) -> Tensor:
    """The keys and values that the base has for a text, fp32 on the CPU, shape (L, 2, V, K, E).

    In an encoder-decoder, for the text as source and as answer.
    """
    if model.anatomy.family.kind != "decoder":
        batch = _text_alone(tokens_V, is_answer=model.anatomy.encoder is not None)
        return _stacked(model.attention_states(batch.to(model.device)))
    cache = DynamicCache()
    count = len(tokens_V)
    model.prefill(
        tokens_V[None].to(model.device),
        torch.arange(count, device=model.device)[None],
        (Segment(0, count),),
        torch.tensor([count - 1], device=model.device),
        cache,
    )
    return _stacked(cached(cache))


def _stacked(states: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Keys and values, each (1, K, V, E), as one tensor (L, 2, V, K, E). Raises RecipeError if they differ in shape."""
    if len({keys.shape for keys, _ in states}) > 1:
        raise RecipeError(
            "The model's encoder and decoder have different numbers of attention heads, so that one prefix does not fit both.",
            "Set method.kind to prompt-tuning.",
            field="method.kind",
        )
    states_LSKVE = torch.stack([torch.cat(pair) for pair in states])
    return states_LSKVE.transpose(2, 3).float().cpu()


def _text_alone(tokens_V: Tensor, *, is_answer: bool) -> Batch:
    """A text as a batch, of which nothing is learned. is_answer: whether as the answer of an encoder-decoder to itself."""
    segments, none = (Segment(0, len(tokens_V)),), torch.zeros(0, dtype=torch.int64)
    positions_1V, mask_1V = torch.arange(len(tokens_V))[None], torch.ones(1, len(tokens_V), dtype=torch.bool)
    return Batch(
        layout="bucketed",
        tokens_BT=tokens_V[None],
        positions_BT=positions_1V,
        mask_BT=mask_1V,
        segments=segments,
        documents=(0,),
        targets=Targets(none, none, none.float(), none, none),
        sources=Sources(tokens_V[None], positions_1V, mask_1V, segments) if is_answer else None,
    )


def sizes_of(model: LanguageModel) -> tuple[int, int, int, int]:
    """L, 2, K and E, as the model's own attention has them."""
    layers, states, _, heads, width = states_of(model, torch.tensor([0])).shape
    return layers, states, heads, width
