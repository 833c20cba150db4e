"""Selected rows: train some rows of the embedding, or some output rows of linear layers, and leave the others as they are.

Embedding rows (common practice; peft calls them trainable tokens):  E' = E with the rows of the chosen tokens replaced by R.
A head that is tied to the embedding computes with R too, so that the tokens are written with what they are read with.
Rows of linear layers: FAR, Vucetic et al. 2022, https://arxiv.org/abs/2205.01541:

    y[:, j] = x R_jᵀ + r_j  for the chosen outputs j,  y[:, i] = x W_iᵀ + c_i  for the others.

The trained rows are tensors of their own with absolute values, so neither weight decay nor momentum can move another row.
The paper trains rows of feed-forward layers, and ranks them by how far a short full tuning moves them. Here a share is
chosen by the norm of its weights, the largest first, unless the rows are named; that choice is ours.

Merges: yes, the rows are written back as they are. Deep backward: to the embedding, or to the lowest layer with rows.
Over 4 bits: yes, but then merging needs the dequantized layer. Identity at the start: exact.
Trainable numbers: K D for K tokens (twice where an untied head takes part) + Σ K (I + 1) over the linear layers (I without
a bias).
Shapes: N tokens, K rows, D width, I inputs, O outputs.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from luthier.errors import NotFound, RecipeError
from luthier.methods.adapter import PlacedMethod, adapted_layers, trainable
from luthier.methods.adapter_attachment import AdapterAttachment
from luthier.methods.adapter_files import AdapterFile, Form, OwnForm
from luthier.methods.bank import AdaptedEmbedding, AdaptedLinear
from luthier.methods.contract import Group, Kin, Traits
from luthier.methods.peft_files import PeftForm
from luthier.methods.rows_layers import HeadRows, OutputRows, TokenRows
from luthier.models.anatomy import Anatomy, ends_in, find_among
from luthier.models.language_model import LanguageModel

Share = Annotated[float, Field(gt=0, le=1)]
Indices = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]


@dataclass(frozen=True)
class TokensForm(PeftForm):
    """peft's trainable tokens: rows of the embedding, and of the head where there are two tensors."""

    def settings_of(self, config: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
        """The tokens, and which tables they are of."""
        return {**super().settings_of(config, tensors), "in_head": len(tensors) > 1, "linear_rows": None}


@dataclass(frozen=True)
class RowsForm(Form):
    """peft's form where only tokens have trained rows, else Luthier's own."""

    peft: ClassVar[TokensForm] = TokensForm(
        title="Selected rows",
        peft_type="TRAINABLE_TOKENS",
        fields={"tokens": "token_indices"},
        endings=("trainable_tokens_delta",),
        missing={"tokens": []},
        constants={"init_weights": True},
        transposes=False,
    )
    own: ClassVar[OwnForm] = OwnForm("rows")

    def read(self, source: str) -> AdapterFile:
        """The adapter of a run folder, or of the folder itself, in whichever form it lies there."""
        try:
            return self.own.read(source)
        except NotFound:
            return self.peft.read(source)

    def write(self, folder: Path, file: AdapterFile, anatomy: Anatomy, is_transposed: bool) -> None:
        """Write it into a folder that exists; is_transposed: whether the adapted weights are stored as (in, out)."""
        if file.settings["linear_rows"] is not None:
            self.own.write(folder, file, anatomy, is_transposed)
            return
        # peft wraps a tied head by itself, and takes it for an untied one where the config names it
        tied = {anatomy.head} if anatomy.is_head_tied else set()
        targets = [name for name in file.settings["targets"] if name not in tied]
        self.peft.write(folder, replace(file, settings={**file.settings, "targets": targets}), anatomy, is_transposed)


class Rows(PlacedMethod):
    """Chosen rows of the embedding and of linear layers."""

    family: ClassVar[Kin] = "selective"
    paper: ClassVar[str] = "https://arxiv.org/abs/2205.01541"
    count: ClassVar[str] = "K D for K tokens + Σ K (I + 1) over the linear layers with chosen rows"
    traits: ClassVar[Traits] = Traits(merges=True, deep_backward=True, over_4bit=True, identity_at_start=True)
    default_lr: ClassVar[float] = 1e-3
    form: ClassVar[RowsForm] = RowsForm()
    keeps_tie: ClassVar[bool] = True

    kind: Literal["rows"] = "rows"
    tokens: tuple[int | str, ...] = Field(
        (), description="Tokens whose embedding rows train: their ids, or texts that are one token each."
    )
    in_head: bool = Field(
        False,
        description="Whether an untied head trains its rows of these tokens too; a tied one always uses the embedding's.",
    )
    linear_rows: Share | dict[str, Indices] | None = Field(
        None,
        description="Output rows of linear layers that train: a share of each layer's (0 to 1), those of the largest norm; "
        "or the last parts of layers' names and their rows, counted from 0.",
    )
    targets: Literal["all-linear"] | tuple[str, ...] = Field(
        "all-linear",
        description="Linear layers that a share of linear_rows is taken of, by the last parts of their names.",
    )

    @field_validator("targets", mode="before")
    @classmethod
    def _one_name_is_a_list_of_one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) and value != "all-linear" else value

    @model_validator(mode="after")
    def _no_row_is_named_twice(self) -> Self:
        named = self.linear_rows if isinstance(self.linear_rows, dict) else {}
        for rows in (self.tokens, *named.values()):
            twice = [row for row, count in Counter(rows).items() if count > 1]
            if twice:
                raise ValueError(f"{twice[0]!r} is named twice; name each row once.")
        return self

    def places(self, model: LanguageModel) -> tuple[str, ...]:
        """The embedding, the linear layers and the head that have trained rows. Raises RecipeError if there are none."""
        anatomy = model.anatomy
        if not self.tokens and self.linear_rows is None:
            raise RecipeError(
                "No rows are chosen, so nothing would train.",
                "Name some tokens in method.tokens, or a share of rows in method.linear_rows.",
                field="method.tokens",
            )
        if self.in_head and anatomy.purpose == "classes":
            raise RecipeError(
                "The model's head is over classes and has no rows for tokens.",
                "Leave method.in_head out.",
                field="method.in_head",
            )
        embedding = (anatomy.embedding,) if self.tokens else ()
        head = (anatomy.head,) if self.tokens and (self.in_head or anatomy.is_head_tied) else ()
        return (*embedding, *self._linears(anatomy), *head)

    def known(self, anatomy: Anatomy) -> set[str]:
        """The embedding, the linear layers and the head."""
        return {anatomy.embedding, *anatomy.linears, anatomy.head}

    def token_ids(self, model: LanguageModel) -> tuple[int, ...]:
        """The chosen tokens as ids. Raises RecipeError for what is not one token of the model."""
        ids = tuple(token if isinstance(token, int) else _id_of(token, model) for token in self.tokens)
        for token, count in Counter(ids).items():
            if not 0 <= token < model.vocab_size:
                raise RecipeError(
                    f"There is no token {token}; the model has {model.vocab_size}.",
                    f"Use ids from 0 to {model.vocab_size - 1}.",
                    field="method.tokens",
                )
            if count > 1:
                raise RecipeError(f"Token {token} is named twice.", "Name each token once.", field="method.tokens")
        return ids

    def stated(self, model: LanguageModel) -> dict[str, Any]:
        """As for any adapter, with tokens as ids and layers by their whole names."""
        stated = super().stated(model)
        settled = self._settled(model).file_settings()
        return {field: value if field == "targets" else settled[field] for field, value in stated.items()}

    def grouped(self, tensors: dict[str, nn.Parameter]) -> tuple[Group, ...]:
        """The rows, which decay, and their biases, which do not."""
        biases = {name: tensor for name, tensor in tensors.items() if tensor.dim() == 1}
        rows = {name: tensor for name, tensor in tensors.items() if name not in biases}
        return (Group(rows), Group(biases, decays=False)) if biases else (Group(rows),)

    def place(self, model: LanguageModel, name: str, seed: int, fast: bool) -> AdapterAttachment:
        """Copies of the chosen rows; a tied head shares those of the embedding."""
        anatomy, places, settled = model.anatomy, self.places(model), self._settled(model)
        tokens_K = torch.tensor(settled.tokens, dtype=torch.int64, device=model.device)
        layers = adapted_layers(model, places)
        for target, layer in layers.items():
            if isinstance(layer, AdaptedEmbedding):
                layer.add(name, TokenRows(tokens_K, _rows_of(layer.weight, tokens_K)))
                continue
            assert isinstance(layer, AdaptedLinear)
            if target != anatomy.head:
                layer.add(name, _output_rows(layer, settled.linear_rows))
            elif anatomy.is_head_tied:
                source = layers[anatomy.embedding].branch(name)
                assert isinstance(source, TokenRows)
                layer.add(name, HeadRows(tokens_K, source.rows_KD, owns=False))
            else:
                layer.add(name, HeadRows(tokens_K, _rows_of(layer.weight, tokens_K), owns=True))
        return AdapterAttachment(settled, model, name, layers)

    def _settled(self, model: LanguageModel) -> Self:
        """These settings with tokens as ids, explicit rows under whole names, and a tied head taking part."""
        linear_rows = self.linear_rows
        if isinstance(linear_rows, dict):
            linear_rows = {
                name: next(rows for ending, rows in linear_rows.items() if ends_in(name, ending))
                for name in self._linears(model.anatomy)
            }
        in_head = self.in_head or (bool(self.tokens) and model.anatomy.is_head_tied)
        return self.model_copy(update={"tokens": self.token_ids(model), "in_head": in_head, "linear_rows": linear_rows})

    def _linears(self, anatomy: Anatomy) -> tuple[str, ...]:
        """The linear layers that have trained rows."""
        if self.linear_rows is None:
            return ()
        if isinstance(self.linear_rows, dict):
            targets = tuple(self.linear_rows)
        elif self.targets == "all-linear":
            return find_among(anatomy, anatomy.linears, None, self.layers, "all-linear")
        else:  # an adapter's file names the tables of the tokens too
            targets = tuple(target for target in self.targets if target not in (anatomy.embedding, anatomy.head))
        return find_among(anatomy, anatomy.linears, targets, self.layers, "all-linear")


def _id_of(text: str, model: LanguageModel) -> int:
    """The id of a token by its text, or by its name in the vocabulary. Raises RecipeError if there is no such token."""
    vocabulary = model.tokenizer.get_vocab()
    if text in vocabulary:
        return int(vocabulary[text])
    ids = model.tokenizer.encode(text, add_special_tokens=False)
    if len(ids) == 1 and str(model.tokenizer.decode(ids)).strip() == text.strip():
        return int(ids[0])
    pieces = " ".join(model.tokenizer.convert_ids_to_tokens(ids))
    raise RecipeError(
        f"{text!r} is not one token of the model; the tokenizer makes {pieces or 'nothing'} of it.",
        "Name the tokens that it is made of, or ids. A new token must first be added to the tokenizer and the model.",
        field="method.tokens",
    )


def _rows_of(weight_OI: Tensor, index_K: Tensor) -> nn.Parameter:
    """A trainable copy of some rows."""
    return trainable(weight_OI.detach()[index_K], weight_OI.device)


def _output_rows(layer: AdaptedLinear, wanted: float | dict[str, tuple[int, ...]] | None) -> OutputRows:
    """The branch with copies of a layer's chosen rows: a share, those of the largest norm, or the ones named."""
    assert wanted is not None
    weight_OI, num_outputs = layer.weight.detach(), len(layer.weight)
    if isinstance(wanted, dict):
        index_K = torch.tensor(wanted[layer.name], dtype=torch.int64, device=weight_OI.device)
        if int(index_K.max()) >= num_outputs:
            raise RecipeError(
                f"{layer.name} has {num_outputs} outputs; there is no row {int(index_K.max())}.",
                f"Use rows from 0 to {num_outputs - 1}.",
                field="method.linear_rows",
            )
    else:
        count = max(1, round(wanted * num_outputs))
        index_K = weight_OI.float().norm(dim=1).topk(count).indices.sort().values
    bias_K = None if layer.bias is None else _rows_of(layer.bias, index_K)
    return OutputRows(index_K, _rows_of(weight_OI, index_K), bias_K, num_outputs)
