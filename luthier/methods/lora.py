"""LoRA: learn a low-rank change of frozen weights.

Hu et al. 2021, https://arxiv.org/abs/2106.09685:  y = x Wᵀ + c + s · drop(x) Aᵀ Bᵀ,  s = α / R,  B = 0 at the start.
rsLoRA, Kalajdzievski 2023, https://arxiv.org/abs/2312.03732, takes s = α / √R, so that large ranks keep learning.
LoRA+, Hayou et al. 2024, https://arxiv.org/abs/2402.12354, gives B a learning rate λ times that of A.

Merges: yes. Deep backward: yes, to the lowest adapted layer. Over 4 bits: yes. Identity at the start: exact.
Trainable numbers: Σ R (I + O) over the adapted layers (an embedding counts I = V, O = D).
Shapes: I inputs, O outputs, R rank.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

import torch
from pydantic import Field, ValidationError, field_validator, model_validator
from torch import Tensor, nn

from luthier.errors import RecipeError
from luthier.methods.bank import AdaptedEmbedding, AdaptedLinear, Branch, adapted
from luthier.methods.contract import Attachment, Group, Method, Traits
from luthier.methods.lora_layers import LoRABranch, LoRAEmbeddingBranch
from luthier.methods.peft_files import LoRAFile, read_lora, write_lora
from luthier.models.anatomy import find_targets, replace_module
from luthier.models.language_model import LanguageModel
from luthier.ops.draws import salt_of

Value = TypeVar("Value")


class LoRA(Method):
    """Low-rank updates of chosen layers."""

    paper: ClassVar[str] = "https://arxiv.org/abs/2106.09685"
    traits: ClassVar[Traits] = Traits(merges=True, deep_backward=True, over_4bit=True, identity_at_start=True)
    default_lr: ClassVar[float] = 2e-4
    output_folder: ClassVar[str] = "adapter"

    kind: Literal["lora"] = "lora"
    rank: int = Field(16, ge=1, description="Rank of each update.")
    alpha: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Strength: the update is scaled by alpha / rank. Unset: twice the rank.",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of the branch's inputs dropped in training.")
    targets: Literal["all-linear"] | tuple[str, ...] = Field(
        "all-linear",
        description="Layers to adapt, by the last parts of their names; all-linear is every linear layer but the head. The embedding and the head can be named too.",
    )
    layers: tuple[int, ...] | None = Field(
        None, description="Only in these transformer layers, counted from 0; unset: in all."
    )
    rslora: bool = Field(False, description="Scale by alpha / sqrt(rank) instead.")
    rank_pattern: dict[str, int] = Field(
        {},
        description="Other ranks for some layers: a name's last parts, or a regular expression for them, and the rank.",
    )
    alpha_pattern: dict[str, float] = Field({}, description="Other strengths for some layers, in the same way.")
    lr_ratio: float = Field(
        1.0, ge=1, allow_inf_nan=False, description="Learning rate of B over that of A (LoRA+; the paper suggests 16)."
    )
    begin_from: str | None = Field(
        None,
        alias="from",
        description="Go on from this adapter: a run folder or a folder in peft's format. Its rank, strength and targets hold.",
    )

    @field_validator("targets", mode="before")
    @classmethod
    def _one_name_is_a_list_of_one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) and value != "all-linear" else value

    @model_validator(mode="after")
    def _patterns_are_sound(self) -> Self:
        for pattern in (*self.rank_pattern, *self.alpha_pattern):
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"The pattern {pattern!r} is not a regular expression: {error}.") from error
        if any(rank < 1 for rank in self.rank_pattern.values()):
            raise ValueError("rank_pattern holds a rank below 1; leave a layer out with targets or layers instead.")
        if not all(0 < alpha < math.inf for alpha in self.alpha_pattern.values()):
            raise ValueError("alpha_pattern holds a strength that is not a number above 0.")
        return self

    def rank_of(self, layer: str) -> int:
        """The rank of the update of a layer, by its dotted name."""
        return match_pattern(self.rank_pattern, layer, self.rank)

    def scale_of(self, layer: str) -> float:
        """The factor s of the update of a layer."""
        alpha = match_pattern(self.alpha_pattern, layer, 2.0 * self.rank if self.alpha is None else self.alpha)
        rank = self.rank_of(layer)
        return alpha / (math.sqrt(rank) if self.rslora else rank)

    def attach(self, model: LanguageModel, name: str, seed: int, *, fast: bool = True) -> LoRAAttachment:
        """Wrap the targets. With `from`, the file's settings and tensors take the place of these."""
        if self.begin_from is None:
            return self._attach_fresh(model, name, seed, fast)
        file = read_lora(self.begin_from)
        file.check_layers({model.anatomy.embedding, *model.anatomy.linears, model.anatomy.head})
        self._check_agrees(file, model)
        attachment = self._with_shape_of(file)._attach_fresh(model, name, seed, fast)
        attachment.load(file)
        return attachment

    def _with_shape_of(self, file: LoRAFile) -> LoRA:
        """These settings over the file's rank, strength and targets. Raises RecipeError if those make no LoRA."""
        try:
            return LoRA(**{**file.settings, "dropout": self.dropout, "lr_ratio": self.lr_ratio})
        except ValidationError as error:
            fault = error.errors()[0]
            raise RecipeError(
                f"The adapter's config makes no LoRA: {fault['msg']}.",
                "Mend the file, or save the adapter again.",
                file=file.path,
                field=".".join(map(str, fault["loc"])) or None,
            ) from error

    def _check_agrees(self, file: LoRAFile, model: LanguageModel) -> None:
        """Raise RecipeError where the recipe states a shape that the adapter it goes on from does not have."""
        stated = self.model_dump(
            include=self.model_fields_set & {"rank", "alpha", "rslora", "rank_pattern", "alpha_pattern"}
        )
        if {"targets", "layers"} & self.model_fields_set:
            stated["targets"] = tuple(sorted(find_targets(model.anatomy, self.targets, self.layers)))
        found = {**file.settings, "targets": tuple(sorted(file.settings["targets"]))}
        for field, value in stated.items():
            if value != found[field]:
                raise RecipeError(
                    f"The recipe's {field} is not that of the adapter it goes on from: {value} against {found[field]}.",
                    f"Leave method.{field} out, or begin afresh without method.from.",
                    field=f"method.{field}",
                )

    def _attach_fresh(self, model: LanguageModel, name: str, seed: int, fast: bool) -> LoRAAttachment:
        layers = {target: adapted(model, target) for target in find_targets(model.anatomy, self.targets, self.layers)}
        for target, layer in layers.items():
            layer.add(name, self._branch(layer, target, seed, fast))
        return LoRAAttachment(self, model, name, layers)

    def _branch(self, layer: AdaptedLinear | AdaptedEmbedding, target: str, seed: int, fast: bool) -> Branch:
        rows, columns = layer.weight.shape
        rank, scale, device = self.rank_of(target), self.scale_of(target), layer.weight.device
        generator = torch.Generator().manual_seed((salt_of(target) ^ seed) & (2**63 - 1))
        if isinstance(layer, AdaptedEmbedding):
            b_DR = torch.randn(columns, rank, generator=generator)
            return LoRAEmbeddingBranch(_parameter(torch.zeros(rank, rows), device), _parameter(b_DR, device), scale)
        # Kaiming-uniform with a = √5, as in the paper's code: bound 1 / √I
        a_RI = (torch.rand(rank, columns, generator=generator) * 2 - 1) / math.sqrt(columns)
        b_OR = torch.zeros(rows, rank)
        return LoRABranch(_parameter(a_RI, device), _parameter(b_OR, device), scale, self.dropout, fast)


def match_pattern(patterns: Mapping[str, Value], layer: str, default: Value) -> Value:
    """What the patterns say for a layer: the first that is the end of its name, from a whole component on."""
    for pattern, value in patterns.items():
        if re.fullmatch(rf"(.*\.)?({pattern})", layer):
            return value
    return default


def _parameter(tensor: Tensor, device: torch.device) -> nn.Parameter:
    return nn.Parameter(tensor.to(device=device, dtype=torch.float32))


class LoRAAttachment(Attachment):
    """A LoRA at work: its layers by the names that the model knew them by."""

    def __init__(
        self, settings: LoRA, model: LanguageModel, name: str, layers: dict[str, AdaptedLinear | AdaptedEmbedding]
    ) -> None:
        self.extra: dict[str, Any] = {}
        self.settings = settings
        self.model = model
        self.name = name
        self.layers = layers

    @property
    def groups(self) -> tuple[Group, ...]:
        """A and B of every layer; apart where LoRA+ gives them different rates."""
        pairs = [
            [(f"{target}.{ending}", tensor) for ending, tensor in layer.branch(self.name).tensors.items()]
            for target, layer in self.layers.items()
        ]
        a, b = dict(first for first, _ in pairs), dict(second for _, second in pairs)
        if self.settings.lr_ratio == 1:
            return (Group({**a, **b}),)
        return Group(a), Group(b, lr_factor=self.settings.lr_ratio)

    @property
    def lowest_layer(self) -> int | None:
        """The first adapted layer; None if the embedding is adapted."""
        anatomy = self.model.anatomy
        if anatomy.embedding in self.layers:
            return None
        indices = [index for target in self.layers if (index := anatomy.layer_of(target)) is not None]
        return min(indices, default=len(anatomy.layers))

    @property
    def adapter(self) -> str | None:
        """The adapter's own name."""
        return self.name

    @property
    def draws(self) -> bool:
        """Whether there is dropout."""
        return self.settings.dropout > 0

    @torch.no_grad()
    def load(self, file: LoRAFile) -> None:
        """Take the tensors of a file. Raises RecipeError for missing, unexpected or misshapen ones."""
        self.extra = file.extra
        own = self.trainables
        file.check_names(set(own))
        for key, parameter in own.items():
            tensor = file.tensors[key]
            if tensor.shape != parameter.shape:
                raise RecipeError(
                    f"{key} has shape {tuple(tensor.shape)} in the adapter, but {tuple(parameter.shape)} fits this model.",
                    "Choose the base model that the adapter was trained on.",
                    file=file.path,
                )
            parameter.copy_(tensor)

    def write(self, folder: Path, announce: Callable[[str], None]) -> None:
        """Write peft's two files."""
        tensors = {key: tensor.detach() for key, tensor in self.trainables.items()}
        is_transposed = any(isinstance(layer, AdaptedLinear) and layer.is_transposed for layer in self.layers.values())
        settings = self.settings.model_dump(exclude={"begin_from"})
        settings["targets"] = tuple(self.layers)
        file = LoRAFile(str(folder), settings, tensors, self.model.identity.name, self.extra)
        write_lora(folder, file, is_transposed, self.model.anatomy)

    def merge(self) -> None:
        """Fold every update into its layer, and take off banks that then are empty.

        A head that is tied to the embedding is untied first, if either of them changes.
        """
        anatomy = self.model.anatomy
        if anatomy.is_head_tied and {anatomy.embedding, anatomy.head} & set(self.layers):
            _untie(self.model)
        for target, layer in self.layers.items():
            base = layer.merge(self.name)
            if not layer.branches:
                replace_module(self.model.hf, target, base)
        self.layers = {}


def _untie(model: LanguageModel) -> None:
    """Give the head its own copy of the weight that it shares with the embedding."""
    head = model.hf.get_submodule(model.anatomy.head)
    holder = head.base if isinstance(head, AdaptedLinear) else head
    assert isinstance(holder, nn.Linear)
    holder.weight = nn.Parameter(holder.weight.detach().clone(), requires_grad=False)
    model.hf.config.tie_word_embeddings = False
    model.anatomy = replace(model.anatomy, is_head_tied=False)
