"""The ends of a layer's two sublayers, where adapters stand, and the residual that enters one, which some of them read.

A sublayer (attention or feed-forward) makes u from the residual stream r, and h' = r + u goes on. Where norms follow the
sum (post-norm), LN(r + u) goes on. u is what the sublayer's last linear layer gives; in families with one more norm
between that and the sum it is that norm's output; and a family may multiply it by a factor of its config (Granite).
In families whose attention and feed-forward read the layer's input side by side, r is that input for both.
A decoder's layer that reads an encoder has a third sublayer between the two, where adapters stand only if asked.

An adapter changes u into u + f(z). What it reads, z, is made of u and r; r is known at the sublayer's beginning only, so
a `NoteBranch` there notes it in the call, for the branch at the end.
Shapes: N tokens, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NoReturn

from torch import Tensor, nn

from luthier.errors import RecipeError
from luthier.methods.bank import AdaptedLayer, Branch, adapted
from luthier.models.anatomy import LayerAnatomy, chosen_layers, config_number, is_linear, shape_of
from luthier.models.call import Run, current_call
from luthier.models.experts import MixtureEnd
from luthier.models.language_model import LanguageModel

Sublayer = Literal["attention", "cross-attention", "feedforward"]


@dataclass(frozen=True)
class End:
    """Where a sublayer ends.

    place: the layer whose output is u. width: its size D. factor: what the model multiplies u by before the sum.
    """

    place: str
    layer: LayerAnatomy
    width: int
    factor: float


def sublayer_ends(
    model: LanguageModel, layers: tuple[int, ...] | None, sublayers: tuple[Sublayer, ...]
) -> tuple[End, ...]:
    """The ends of these sublayers in these layers (None: all), in the order of computation.

    Raises RecipeError for a cross-attention where no layer has one.
    """
    anatomy = model.anatomy
    if "cross-attention" in sublayers and anatomy.encoder is None:
        raise RecipeError(
            f"Models of type {model.hf.config.model_type!r} have no cross-attention.",
            "Leave cross-attention out; only a decoder that reads an encoder has it.",
            field="method.sublayers",
        )
    factor = config_number(model.hf.config, anatomy.family.residual_factor_key)
    ends = []
    for layer in chosen_layers(anatomy, layers):
        places: dict[Sublayer, str] = {"attention": layer.attention_post_norm or layer.attention_out}
        if layer.cross_attention is not None:
            places["cross-attention"] = layer.roles["cross_attention_out"]
        places["feedforward"] = layer.feedforward_post_norm or layer.feedforward_end
        for sublayer, place in places.items():
            if sublayer in sublayers:
                width = _outputs(frozen_layer(model, place))
                ends.append(End(place, layer, width, 1.0 if factor is None else factor))
    return tuple(ends)


def frozen_layer(model: LanguageModel, name: str) -> nn.Module:
    """The frozen layer of that name, within its bank if it has one."""
    module = model.hf.get_submodule(name)
    return module.base if isinstance(module, AdaptedLayer) else module


def _outputs(module: nn.Module) -> int:
    """How many numbers a token's output has: those of a linear layer, of a mixture's end, or of a norm (D,)."""
    if isinstance(module, MixtureEnd):
        return module.width
    return shape_of(module)[0] if is_linear(module) else len(module.get_parameter("weight"))


def with_branches(model: LanguageModel, name: str, branches: Mapping[str, Branch]) -> dict[str, AdaptedLayer]:
    """The layers of these names, each with a bank that holds the branch under the adapter's name."""
    layers = {place: adapted(model, place) for place in branches}
    for place, layer in layers.items():
        layer.add(name, branches[place])
    return layers


class AddedMap(nn.Module, ABC):
    """A map f from what an adapter reads to what it adds to u, both (N, D), in the dtype of its input."""

    @property
    @abstractmethod
    def tensors(self) -> dict[str, nn.Parameter]:
        """What trains, by the ending of its name in files; tensors that several maps share are not among them."""

    def file_tensors(self) -> dict[str, Tensor]:
        """What an adapter file holds, by ending."""
        return {ending: tensor.detach() for ending, tensor in self.tensors.items()}


class AddingBranch(Branch, ABC):
    """u + f(z) at a sublayer's end: the frame that serial and parallel adapters share.

    reads_residual: whether z is made of r too, which a NoteBranch has to note.
    """

    reads_residual: ClassVar[bool] = False

    def __init__(self, added: AddedMap, factor: float) -> None:
        super().__init__()
        self.added = added
        self.factor = factor

    @property
    def tensors(self) -> dict[str, nn.Parameter]:
        """Those of the map."""
        return self.added.tensors

    def file_tensors(self) -> dict[str, Tensor]:
        """Those of the map."""
        return self.added.file_tensors()

    @abstractmethod
    def reads(self, u_ND: Tensor, layer: AdaptedLayer, run: Run) -> Tensor:
        """z, given what the sublayer adds to the residual stream."""

    def forward(self, x: Tensor, layer: AdaptedLayer, run: Run) -> Tensor:
        """What the frozen layer gives, with what the adapter adds to the stream in front of the model's factor."""
        u_ND: Tensor = layer.base(x)
        plain = self.factor == 1
        added_ND: Tensor = self.added(self.reads(u_ND if plain else u_ND * self.factor, layer, run))
        return u_ND + (added_ND if plain else added_ND / self.factor).to(u_ND.dtype)

    def merge_into(self, layer: AdaptedLayer) -> None:
        """Raise RecipeError: what lies beside the stream has no weight to go into."""
        _refuse_merge()


class SerialBranch(AddingBranch):
    """z = u: the adapter stands after the sublayer."""

    def reads(self, u_ND: Tensor, layer: AdaptedLayer, run: Run) -> Tensor:
        """u itself."""
        return u_ND


class NoteBranch(Branch):
    """Changes nothing: notes what enters its layer, or what leaves it, for the branch at a sublayer's end."""

    def __init__(self, reader: str, noted: Literal["input", "output"]) -> None:
        super().__init__()
        self.reader = reader
        self.noted = noted

    @property
    def tensors(self) -> dict[str, nn.Parameter]:
        """None."""
        return {}

    def forward(self, x_ND: Tensor, layer: AdaptedLayer, run: Run) -> Tensor:
        """What the frozen layer gives."""
        y_ND: Tensor = layer.base(x_ND)
        note_residual(self.reader, run, x_ND if self.noted == "input" else y_ND)
        return y_ND

    def merge_into(self, layer: AdaptedLayer) -> None:
        """Raise RecipeError, as the branch that reads the note does."""
        _refuse_merge()


def residual_noter(model: LanguageModel, end: End) -> tuple[str, NoteBranch]:
    """Where the residual that enters an end's feed-forward can be seen, and the branch that notes it there."""
    layer = end.layer
    if not model.anatomy.norms_first:  # it is what the norm after the sum before it gives
        before = layer.cross_norm or layer.attention_norm
        assert before is not None
        return before, NoteBranch(end.place, "output")
    if layer.feedforward_norm is not None:
        return layer.feedforward_norm, NoteBranch(end.place, "input")
    first = next(name for name in layer.linears if name.startswith(layer.feedforward + "."))  # it reads r itself
    return first, NoteBranch(end.place, "input")


def note_residual(reader: str, run: Run, r_ND: Tensor) -> None:
    """Note the residual for the sublayer's end of that name in this call."""
    current_call().notes[reader, run.start] = r_ND


def noted_residual(layer: AdaptedLayer, run: Run) -> Tensor:
    """The residual (N, D) that was noted for a sublayer's end in this call; taken out, so that nothing keeps it."""
    return current_call().notes.pop((layer.name, run.start))


def norm_of_sum(model: LanguageModel, end: End) -> Callable[[Tensor], Tensor] | None:
    """The frozen norm of r + u after an end's feed-forward, where the model's norms follow the sums."""
    if model.anatomy.norms_first:
        return None
    assert end.layer.feedforward_norm is not None
    norm: Callable[[Tensor], Tensor] = frozen_layer(model, end.layer.feedforward_norm).forward
    return norm


def _refuse_merge() -> NoReturn:
    raise RecipeError(
        "An adapter beside the residual stream computes something that no linear layer can, so it cannot be merged.",
        "Keep it beside the base model.",
        field="method.kind",
    )
