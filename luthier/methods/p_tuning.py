"""P-tuning: virtual tokens whose embeddings a small network makes, which trains with them.

Liu et al. 2021, https://arxiv.org/abs/2103.10385:  P = MLP(BiLSTM(e)), e (V, D) trained. The network ties the virtual tokens
to each other in training; afterwards it is run once, and P alone is the adapter. The sizes are those of peft:

    MLP   P = W₃ relu(W₂ relu(W₁ e + c₁) + c₂) + c₃       D → H → H → D
    LSTM  P = W₂ relu(W₁ BiLSTM(e) + c₁) + c₂             D → 2H (both directions) → 2H → D

The paper writes virtual tokens between the words of a template; here, as in peft, all stand before the document. Between
the LSTM's layers peft can drop inputs in training; we do not. All starts are torch's own (e is standard normal).

peft's file holds P only, so that it cannot be trained on. Ours lays the network beside it. A file without one is refused
by `from`: prompt tuning goes on with its rows.

Merges: no. Deep backward: yes, to the input. Over 4 bits: yes. Identity at the start: no.
Trainable numbers: MLP VD + (DH + H) + (H² + H) + (HD + D); LSTM VD + Σ over its layers 8H (I + H + 2) + (4H² + 2H) + (2HD + D),
with I = D in the first layer and 2H in the others.
Shapes: V virtual tokens, D width of the embedding, H width of the network.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from luthier.errors import RecipeError
from luthier.methods.adapter_files import AdapterFile
from luthier.methods.contract import Group, Kin, Traits
from luthier.methods.prompt_files import TABLE, PromptForm
from luthier.methods.prompt_networks import draw_as_torch_does, empty_linear, empty_lstm
from luthier.methods.soft_prompts import PromptSource, SoftPromptMethod, width_of
from luthier.models.language_model import LanguageModel


class PTuningForm(PromptForm):
    """P_TUNING, with the network's sizes."""

    def settings_of(self, config: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
        """The kind of network and its sizes."""
        kind = str(config.get("encoder_reparameterization_type") or "MLP")
        layers = config.get("encoder_num_layers") or 2
        return {"encoder": kind, "hidden": config.get("encoder_hidden_size"), "lstm_layers": layers}

    def config_of(self, settings: dict[str, Any]) -> dict[str, Any]:
        """The same in peft's words."""
        return {
            "encoder_reparameterization_type": settings["encoder"],
            "encoder_hidden_size": settings["hidden"],
            "encoder_num_layers": settings["lstm_layers"],
        }


class PTuning(SoftPromptMethod):
    """Virtual tokens made by a network in training."""

    family: ClassVar[Kin] = "soft-prompt"
    paper: ClassVar[str] = "Liu et al. 2021, https://arxiv.org/abs/2103.10385"
    count: ClassVar[str] = "MLP: VD + DH + H + H² + H + HD + D; LSTM: VD + Σ 8H (I + H + 2) + 4H² + 2H + 2HD + D"
    traits: ClassVar[Traits] = Traits(merges=False, deep_backward=True, over_4bit=True, identity_at_start=False)
    default_lr: ClassVar[float] = 1e-3
    form: ClassVar[PTuningForm] = PTuningForm(title="p-tuning", peft_type="P_TUNING")

    kind: Literal["p-tuning"] = "p-tuning"
    encoder: Literal["MLP", "LSTM"] = Field(
        "MLP", description="The network that makes the virtual tokens in training; LSTM reads them in both directions."
    )
    hidden: int | None = Field(None, ge=1, description="Width of the network; unset: that of the embedding.")
    lstm_layers: int = Field(2, ge=1, description="Layers of the LSTM; an MLP has three whatever this is.")

    def source(self, model: LanguageModel, generator: torch.Generator) -> PromptNetwork:
        """The network, and what it reads."""
        width = width_of(model)
        layers = self.lstm_layers if self.encoder == "LSTM" else None
        return PromptNetwork(self.num_virtual_tokens, width, self.hidden or width, layers, generator)

    def check_fits(self, file: AdapterFile, model: LanguageModel) -> None:
        """Raise RecipeError if the file has the rows alone."""
        if set(file.tensors) == {TABLE}:
            raise RecipeError(
                "The adapter holds the virtual tokens that p-tuning came to, but not the network that made them.",
                "Set method.kind to prompt-tuning, which goes on with the virtual tokens themselves, or begin from a "
                "run of Luthier, which keeps the network.",
                file=file.path,
                field="method.from",
            )

    def grouped(self, tensors: dict[str, nn.Parameter]) -> tuple[Group, ...]:
        """What the network reads, which does not decay, and its weights, which do."""
        read = {name: tensor for name, tensor in tensors.items() if name == "embedding"}
        weights = {name: tensor for name, tensor in tensors.items() if name not in read}
        return Group(read, decays=False), Group(weights)


class PromptNetwork(PromptSource):
    """e, and the network that makes P of it; with `lstm_layers` a bidirectional LSTM before the MLP."""

    def __init__(
        self, count: int, width: int, hidden: int, lstm_layers: int | None, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(count, width, generator=generator))
        self.lstm: nn.LSTM | None = None
        if lstm_layers is None:
            widths = [width, hidden, hidden, width]
        else:
            self.lstm = empty_lstm(width, hidden, lstm_layers)
            widths = [2 * hidden, 2 * hidden, width]
        linears = [empty_linear(inputs, outputs) for inputs, outputs in pairwise(widths)]
        between: list[nn.Module] = [part for linear in linears for part in (nn.ReLU(), linear)]
        self.mlp = nn.Sequential(*between[1:])
        draw_as_torch_does(self, generator)

    def forward(self) -> Tensor:
        """P, shape (V, D)."""
        read_VH = self.embedding
        if self.lstm is not None:
            read_VH, _ = self.lstm(read_VH)
        made_VD: Tensor = self.mlp(read_VH)
        return made_VD
