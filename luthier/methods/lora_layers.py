"""Layers that hold a bank of named LoRA adapters around a frozen layer.

Which adapter a token uses is read from the current call: one for the whole batch, or runs of neighbouring tokens with
one each, so that several adapters train or serve in one batch over one frozen base.
Shapes: N tokens, I inputs, O outputs, R rank, V vocabulary, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from luthier.models.call import Run, current_call
from luthier.ops.draws import salt_of
from luthier.ops.lora import Dropout, lora_linear, lora_linear_reference


@dataclass(frozen=True)
class LowRank:
    """One adapter of one layer: A (R, I), B (O, R), the factor on their product, and the dropout on the branch's input."""

    a_RI: nn.Parameter
    b_OR: nn.Parameter
    scale: float
    drop: float = 0.0


class _Bank(nn.Module):
    """Named adapters beside a frozen layer."""

    def __init__(self, base: nn.Module, name: str, fast: bool) -> None:
        super().__init__()
        self.base = base
        self.salt = salt_of(name)
        self.fast = fast
        self.lora_a = nn.ParameterDict()
        self.lora_b = nn.ParameterDict()
        self.adapters: dict[str, LowRank] = {}

    def add(self, name: str, adapter: LowRank) -> None:
        """Take in an adapter under a name; one of the same name is replaced."""
        self.lora_a[name] = adapter.a_RI
        self.lora_b[name] = adapter.b_OR
        self.adapters[name] = adapter

    def remove(self, name: str) -> None:
        """Forget an adapter."""
        del self.lora_a[name], self.lora_b[name], self.adapters[name]

    def _active(self) -> tuple[Run, ...]:
        """The runs of the current call in which this layer has an adapter to add."""
        return tuple(run for run in current_call().runs if run.adapter in self.adapters)

    def _dropout(self, adapter: LowRank, run: Run) -> Dropout | None:
        keys_N = current_call().keys_N
        if adapter.drop == 0 or keys_N is None:
            return None
        return Dropout(keys_N[run.start : run.stop], self.salt, adapter.drop)


class LoRALinear(_Bank):
    """A frozen linear layer (`nn.Linear` or `Conv1D`) with a bank of low-rank updates."""

    file_suffixes = ("lora_A.weight", "lora_B.weight")

    def __init__(self, base: nn.Linear | Conv1D, name: str, fast: bool) -> None:
        super().__init__(base, name, fast)
        self.is_transposed = isinstance(base, Conv1D)

    @property
    def weight(self) -> Tensor:
        """The frozen weight, as (O, I) whatever the layer stores."""
        weight = self.base.get_parameter("weight")
        return weight.t() if self.is_transposed else weight

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias (O,), if there is one."""
        return dict(self.base.named_parameters(recurse=False)).get("bias")

    def forward(self, x: Tensor) -> Tensor:
        active = self._active()
        if not active:
            base: Tensor = self.base(x)
            return base
        x_NI = x.reshape(-1, x.shape[-1])
        if len(active) == len(current_call().runs) == 1:
            y_NO = self._adapted(x_NI, active[0])
        else:
            y_NO = self._mixed(x_NI, active)
        return y_NO.view(*x.shape[:-1], -1)

    def _adapted(self, x_NI: Tensor, run: Run) -> Tensor:
        adapter = self.adapters[str(run.adapter)]
        use_fast = self.fast and not torch.is_autocast_enabled(x_NI.device.type)
        layer = lora_linear if use_fast else lora_linear_reference
        dropout = self._dropout(adapter, run)
        return layer(x_NI, self.weight, self.bias, adapter.a_RI, adapter.b_OR, adapter.scale, dropout)

    def _mixed(self, x_NI: Tensor, active: tuple[Run, ...]) -> Tensor:
        """The base once for all tokens, then each run's own branch."""
        sides = []
        at = 0
        y_NO = F.linear(x_NI, self.weight, self.bias)
        for run in active:
            sides.append(y_NO[at : run.start])
            sides.append(y_NO[run.start : run.stop] + self._side(x_NI[run.start : run.stop], run))
            at = run.stop
        sides.append(y_NO[at:])
        return torch.cat(sides)

    def _side(self, x_NI: Tensor, run: Run) -> Tensor:
        adapter = self.adapters[str(run.adapter)]
        dropout = self._dropout(adapter, run)
        branch_NI = x_NI if dropout is None else dropout(x_NI)
        side_NO = F.linear(F.linear(branch_NI, adapter.a_RI.to(x_NI.dtype)), adapter.b_OR.to(x_NI.dtype))
        return side_NO * adapter.scale

    @torch.no_grad()
    def merged(self, name: str) -> nn.Module:
        """The frozen layer with W + s B A in place of W, added in fp32 and cast once."""
        adapter = self.adapters[name]
        weight = self.base.get_parameter("weight")
        delta_OI = adapter.scale * (adapter.b_OR.float() @ adapter.a_RI.float())
        weight.copy_(weight.float() + (delta_OI.t() if self.is_transposed else delta_OI))
        return self.base


class LoRAEmbedding(_Bank):
    """A frozen embedding with a bank of low-rank updates: e(t) + s · B A[:, t], A (R, V), B (D, R)."""

    file_suffixes = ("lora_embedding_A", "lora_embedding_B")

    def __init__(self, base: nn.Embedding, name: str, fast: bool) -> None:
        super().__init__(base, name, fast)

    @property
    def weight(self) -> Tensor:
        """The frozen table (V, D)."""
        return self.base.get_parameter("weight")

    def forward(self, tokens: Tensor) -> Tensor:
        rows: Tensor = self.base(tokens)
        active = self._active()
        if not active:
            return rows
        tokens_N = tokens.reshape(-1)
        rows_ND = rows.reshape(len(tokens_N), -1)
        pieces = []
        at = 0
        for run in active:
            adapter = self.adapters[str(run.adapter)]
            low_NR = F.embedding(tokens_N[run.start : run.stop], adapter.a_RI.t())
            side_ND = F.linear(low_NR, adapter.b_OR) * (adapter.scale * self._row_factor())
            pieces += [rows_ND[at : run.start], rows_ND[run.start : run.stop] + side_ND.to(rows_ND.dtype)]
            at = run.stop
        return torch.cat([*pieces, rows_ND[at:]]).view(rows.shape)

    def _row_factor(self) -> float:
        """What the base multiplies its rows by: √D in Gemma, else 1."""
        factor = dict(self.base.named_buffers(recurse=False)).get("embed_scale")
        return 1.0 if factor is None else float(factor)

    @torch.no_grad()
    def merged(self, name: str) -> nn.Module:
        """The frozen embedding with the update added to its table."""
        adapter = self.adapters[name]
        table = self.base.get_parameter("weight")
        table.copy_(table.float() + adapter.scale * (adapter.b_OR.float() @ adapter.a_RI.float()).t())
        return self.base


LoRALayer = LoRALinear | LoRAEmbedding
