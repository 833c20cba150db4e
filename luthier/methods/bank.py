"""Frozen layers that hold a bank of named branches: what each adapter does there.

Which branch a token uses is read from the current call: one for the whole batch, or runs of neighbouring tokens with one
each, so that several adapters of any kinds train or serve in one batch over one frozen base.
Shapes: N tokens, I inputs, O outputs, D width of an embedding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.errors import RecipeError
from luthier.models.anatomy import is_linear, is_norm, is_transposed, replace_module, shape_of, weight_of
from luthier.models.call import Run, calling, current_call
from luthier.models.experts import MixtureEnd
from luthier.models.families import RMSNormForm
from luthier.models.fast_layers import FastRMSNorm
from luthier.models.language_model import LanguageModel
from luthier.ops.draws import salt_of
from luthier.ops.dropout import Dropout
from luthier.ops.lora import Update, lora_linear, lora_linear_reference, updated_linear
from luthier.ops.norm import rms_norm
from luthier.ops.products import Weight, frozen_linear, plain_linear
from luthier.ops.spectrum import Factors
from luthier.quantization.packed import QuantizedLinear


class Branch(nn.Module, ABC):
    """One adapter at one layer."""

    @property
    @abstractmethod
    def tensors(self) -> dict[str, nn.Parameter]:
        """What trains, by the ending of its name in files; tensors that several branches share are not among them."""

    @property
    def draws(self) -> bool:
        """Whether training draws at random here."""
        return False

    def file_tensors(self) -> dict[str, Tensor]:
        """What an adapter file holds, by ending."""
        return {ending: tensor.detach() for ending, tensor in self.tensors.items()}

    @torch.no_grad()
    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `file_tensors` gave, the shapes checked."""
        for ending, tensor in self.tensors.items():
            tensor.copy_(tensors[ending])

    @abstractmethod
    def merge_into(self, layer: AdaptedLayer) -> None:
        """Change the frozen layer for good so that it computes what the branch did. Raises RecipeError if none can."""


class LinearBranch(Branch):
    """One adapter at a linear layer."""

    @abstractmethod
    def forward(self, x_NI: Tensor, layer: AdaptedLinear, run: Run) -> Tensor:
        """The adapted layer's output (N, O) for the tokens of a run."""

    def update(self, layer: AdaptedLinear) -> Tensor | Factors:
        """What merging adds to the weight, fp32, shape (O, I); as a product where it is one."""
        weight_OI = layer.weight.float()
        merged_OI, _ = self.merged(weight_OI, None if layer.bias is None else layer.bias.float())
        return merged_OI - weight_OI

    def merged(self, weight_OI: Tensor, bias_O: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Weight and bias, fp32, of a plain linear layer that computes the same."""
        raise RecipeError(
            "This method computes something that no linear layer can, so it cannot be merged.",
            "Keep the adapter beside the base model.",
            field="method.kind",
        )

    @torch.no_grad()
    def merge_into(self, layer: AdaptedLayer) -> None:
        """Write `merged` into the frozen layer, cast once."""
        assert isinstance(layer, AdaptedLinear)
        bias_O = None if layer.bias is None else layer.bias.float()
        weight_OI, bias_O = self.merged(layer.weight.float(), bias_O)
        layer.store(weight_OI, bias_O)


class LowRankBranch(LinearBranch):
    """One adapter that adds a low-rank product to the layer's output and does nothing else.

    In a mixed batch the adapters of this kind share one product with the frozen weight.
    """

    fast: bool

    @abstractmethod
    def low_rank(self, layer: AdaptedLinear, run: Run) -> Update:
        """The update of a run's tokens."""

    def forward(self, x_NI: Tensor, layer: AdaptedLinear, run: Run) -> Tensor:
        """x Wᵀ + c + s · drop(x) Aᵀ Bᵀ."""
        low = self.low_rank(layer, run)
        terms = (layer.frozen, layer.bias, low.a_RI, low.b_OR, low.scale, low.dropout)
        return low_rank_linear(self.fast, x_NI, *terms)


def low_rank_linear(
    fast: bool,
    x_NI: Tensor,
    weight_OI: Weight,
    bias_O: Tensor | None,
    a_RI: Tensor,
    b_OR: Tensor,
    scale: float,
    dropout: Dropout | None,
) -> Tensor:
    """x Wᵀ + c + s · drop(x) Aᵀ Bᵀ: as one operation if that is wanted and possible."""
    compute = lora_linear if fast and may_fuse(x_NI) else lora_linear_reference
    return compute(x_NI, weight_OI, bias_O, a_RI, b_OR, scale, dropout)


def may_fuse(x_NI: Tensor) -> bool:
    """Whether an operation of `ops` may stand for several of torch's: not where autocast chooses the number format."""
    return not torch.is_autocast_enabled(x_NI.device.type)


class AdaptedLayer(nn.Module, ABC):
    """A frozen layer and its named branches.

    reads_source: whether its tokens are those of the encoder, in a layer of the decoder.
    """

    def __init__(self, base: nn.Module, name: str, reads_source: bool = False) -> None:
        super().__init__()
        self.base = base
        self.name = name
        self.reads_source = reads_source
        self.salt = salt_of(name)
        self.branches = nn.ModuleDict()

    def add(self, name: str, branch: Branch) -> None:
        """Take in an adapter's branch; one of the same name is replaced."""
        self.branches[name] = branch

    def branch(self, name: str) -> Branch:
        """The branch of that name."""
        branch = self.branches[name]
        assert isinstance(branch, Branch)
        return branch

    def merge(self, name: str) -> nn.Module:
        """Fold a branch into the frozen layer and forget it; returns the frozen layer."""
        self.branch(name).merge_into(self)
        del self.branches[name]
        return self.base

    @abstractmethod
    def _flat(self, x: Tensor) -> Tensor:
        """The input with one row a token."""

    def _unflat(self, y: Tensor, x: Tensor) -> Tensor:
        """The output of all tokens in the order of the input's axes."""
        return y.view(*x.shape[:-1], y.shape[-1])

    def forward(self, x: Tensor) -> Tensor:
        """The base alone where no run has a branch here, else each run by its own."""
        source = current_call().source
        if not self.reads_source or source is None:
            return self._of_call(x)
        with calling(source):
            return self._of_call(x)

    def _of_call(self, x: Tensor) -> Tensor:
        runs = current_call().runs
        if not any(run.adapter is not None and run.adapter in self.branches for run in runs):
            base: Tensor = self.base(x)
            return base
        flat = self._flat(x)
        return self._unflat(self._of_run(flat, runs[0]) if len(runs) == 1 else self._of_runs(flat, runs), x)

    def _of_runs(self, x: Tensor, runs: Sequence[Run]) -> Tensor:
        """What several runs give, one after another."""
        return torch.cat([self._of_run(x[run.start : run.stop], run) for run in runs])

    def _of_run(self, x: Tensor, run: Run) -> Tensor:
        """What one run of tokens gives."""
        if run.adapter is None or run.adapter not in self.branches:
            base: Tensor = self.base(x)
            return base
        adapted: Tensor = self.branches[run.adapter](x, self, run)
        return adapted


class AdaptedLinear(AdaptedLayer):
    """A frozen linear layer (`nn.Linear`, `Conv1D`, or one over a packed weight)."""

    @property
    def is_transposed(self) -> bool:
        """Whether files have the frozen weight as (I, O)."""
        return is_transposed(self.base)

    @property
    def frozen(self) -> Weight:
        """The frozen weight (O, I) to multiply with, packed if the layer stores it so."""
        return self.base.packed if isinstance(self.base, QuantizedLinear) else self.weight

    @property
    def weight(self) -> Tensor:
        """The frozen weight as (O, I), whatever the layer stores; a packed one is unpacked into memory of its own."""
        return weight_of(self.base)

    @property
    def shape(self) -> tuple[int, int]:
        """(O, I)."""
        return shape_of(self.base)

    @property
    def device(self) -> torch.device:
        """Where the frozen weight is."""
        return self.frozen.device

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias (O,), if there is one."""
        return own_parameters(self.base).get("bias")

    def product(self, x_NI: Tensor) -> Tensor:
        """What the frozen layer gives, shape (N, O)."""
        y_NO: Tensor = self.base(x_NI)
        return y_NO

    def product_with(self, x_NI: Tensor, bias_O: Tensor) -> Tensor:
        """What the frozen layer gives with another bias in the place of its own, shape (N, O)."""
        compute = frozen_linear if may_fuse(x_NI) else plain_linear
        return compute(x_NI, self.frozen, bias_O)

    def dropout(self, drop: float, run: Run) -> Dropout | None:
        """Which inputs of a run's branch are dropped in this call; None drops nothing."""
        keys_N = current_call().keys_N
        return None if drop == 0 or keys_N is None else Dropout(keys_N[run.start : run.stop], self.salt, drop)

    def _of_runs(self, x_NI: Tensor, runs: Sequence[Run]) -> Tensor:
        """Several runs: in one product where all that the adapters do is to add to it."""
        found = [
            (run, self.branches[name]) for run in runs if (name := run.adapter) is not None and name in self.branches
        ]
        low_ranks = [(run, branch) for run, branch in found if isinstance(branch, LowRankBranch) and branch.fast]
        if len(low_ranks) < len(found) or not may_fuse(x_NI):
            return super()._of_runs(x_NI, runs)
        updates = [branch.low_rank(self, run) for run, branch in low_ranks]
        return updated_linear(x_NI, self.frozen, self.bias, updates)

    @torch.no_grad()
    def store(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        """Overwrite the frozen weight and bias: a layer without a bias gets one if it needs it, and one over a packed weight becomes plain."""
        if isinstance(self.base, QuantizedLinear):
            self.base = self.base.dense_layer()
        weight = self.base.get_parameter("weight")
        weight.copy_(weight_OI.t() if self.is_transposed else weight_OI)
        if bias_O is None:
            return
        if self.bias is None:
            self.base.register_parameter("bias", nn.Parameter(bias_O.to(weight.dtype), requires_grad=False))
        else:
            self.bias.copy_(bias_O)

    def _flat(self, x: Tensor) -> Tensor:
        return x.reshape(-1, x.shape[-1])


class AdaptedEmbedding(AdaptedLayer):
    """A frozen embedding."""

    @property
    def weight(self) -> Tensor:
        """The frozen table (V, D)."""
        return self.base.get_parameter("weight")

    @property
    def shape(self) -> tuple[int, int]:
        """(V, D)."""
        rows, columns = self.weight.shape
        return rows, columns

    @property
    def device(self) -> torch.device:
        """Where the table is."""
        return self.weight.device

    @property
    def row_factor(self) -> float:
        """What the base multiplies its rows by: √D in Gemma, rounded as the table is, and in some BARTs; else 1."""
        factor = dict(self.base.named_buffers(recurse=False)).get("embed_scale")
        return float(vars(self.base).get("embed_scale", 1.0) if factor is None else factor.to(self.weight.dtype))

    def rows(self, tokens_N: Tensor) -> Tensor:
        """The frozen rows (N, D)."""
        rows_ND: Tensor = self.base(tokens_N)
        return rows_ND

    def _flat(self, x: Tensor) -> Tensor:
        return x.reshape(-1)

    def _unflat(self, y: Tensor, x: Tensor) -> Tensor:
        return y.view(*x.shape, y.shape[-1])


class AdaptedEnd(AdaptedLayer):
    """The end of a mixture of experts, which gives what it gets."""

    def _flat(self, x: Tensor) -> Tensor:
        return x.reshape(-1, x.shape[-1])


class NormBranch(Branch):
    """One adapter at a norm."""

    @abstractmethod
    def forward(self, x_ND: Tensor, layer: AdaptedNorm, run: Run) -> Tensor:
        """The adapted norm's output for the tokens of a run: (N, D), or (N, heads, D) within attention."""


class AdaptedNorm(AdaptedLayer):
    """A frozen norm: `nn.LayerNorm`, or a family's RMSNorm.

    One of queries or keys gets a row a head of every token; `heads_first`: as (B, heads, T, D), not (B, T, heads, D).
    """

    def __init__(self, base: nn.Module, name: str, form: RMSNormForm | None, heads_first: bool) -> None:
        super().__init__(base, name)
        self.heads_first = heads_first
        self.form = None if isinstance(base, nn.LayerNorm) else form
        eps = base.eps if self.form is None or isinstance(base, FastRMSNorm) else vars(base)[self.form.eps]
        assert isinstance(eps, float)
        self.eps = eps

    @property
    def gain(self) -> Tensor:
        """The frozen gain as it is stored (D,): w, where the norm multiplies by w or by 1 + w."""
        return self.base.get_parameter("weight")

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias (D,), if there is one."""
        return own_parameters(self.base).get("bias")

    def plain(self, x_ND: Tensor) -> Tensor:
        """What the frozen norm gives."""
        y_ND: Tensor = self.base(x_ND)
        return y_ND

    def normalized(self, x_ND: Tensor, gain_D: Tensor, bias_D: Tensor | None) -> Tensor:
        """What the norm gives with another gain and bias, both stored as the family stores them."""
        if self.form is None:
            bias_D = None if bias_D is None else bias_D.to(x_ND.dtype)
            return F.layer_norm(x_ND, gain_D.shape, gain_D.to(x_ND.dtype), bias_D, self.eps)
        return rms_norm(x_ND, gain_D + self.form.gain_offset, self.eps).to(x_ND.dtype)

    def _flat(self, x: Tensor) -> Tensor:
        if x.dim() == 4:
            return (x.transpose(1, 2) if self.heads_first else x).flatten(0, 1)
        return x.reshape(-1, x.shape[-1])

    def _unflat(self, y: Tensor, x: Tensor) -> Tensor:
        if x.dim() == 4 and self.heads_first:
            return y.view(x.transpose(1, 2).shape).transpose(1, 2)
        return y.view(x.shape)


def frozen_module(model: LanguageModel, name: str) -> nn.Module:
    """The base's own module of that name, from within its bank if it has one."""
    module = model.hf.get_submodule(name)
    return module.base if isinstance(module, AdaptedLayer) else module


def own_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that a module itself holds, by name."""
    return dict(module.named_parameters(recurse=False))


def adapted(model: LanguageModel, target: str) -> AdaptedLayer:
    """The layer of that name with a bank around it; one that has a bank already is given back as it is."""
    module = model.hf.get_submodule(target)
    if isinstance(module, AdaptedLayer):
        return module
    layer: AdaptedLayer
    if isinstance(module, nn.Embedding):
        layer = AdaptedEmbedding(module, target)
    elif is_linear(module):
        layer = AdaptedLinear(module, target, target in model.anatomy.source_readers)
    elif isinstance(module, MixtureEnd):
        layer = AdaptedEnd(module, target)
    else:
        assert is_norm(module)
        family = model.anatomy.family
        layer = AdaptedNorm(module, target, family.rms_norm, family.norms_heads_first)
    put_module(model, target, layer)
    return layer


def put_module(model: LanguageModel, target: str, module: nn.Module) -> None:
    """Put a module in the place of the one of that name; the embedding, wherever the model keeps it."""
    anatomy = model.anatomy
    for name in anatomy.embedding_places if target == anatomy.embedding else (target,):
        replace_module(model.hf, name, module)
