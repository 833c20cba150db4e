"""What trained rows do at one layer: at the embedding, at a head, at a linear layer.

Shapes: N tokens, K rows, D width, I inputs, O outputs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.errors import RecipeError
from luthier.methods.bank import AdaptedEmbedding, AdaptedLayer, AdaptedLinear, Branch, LinearBranch
from luthier.models.call import Run


class TokenRows(Branch):
    """Rows (K, D) of an embedding in the place of the frozen ones of K tokens."""

    sorted_K: Tensor
    place_K: Tensor

    def __init__(self, tokens_K: Tensor, rows_KD: nn.Parameter) -> None:
        super().__init__()
        self.rows_KD = rows_KD
        sorted_K, place_K = tokens_K.sort()
        self.register_buffer("sorted_K", sorted_K, persistent=False)
        self.register_buffer("place_K", place_K, persistent=False)

    @property
    def tensors(self) -> dict[str, nn.Parameter]:
        """The rows under peft's name; they are values, whatever it says."""
        return {"trainable_tokens_delta": self.rows_KD}

    def forward(self, tokens_N: Tensor, layer: AdaptedEmbedding, run: Run) -> Tensor:
        """The frozen rows, or for chosen tokens the trained ones, (N, D)."""
        rows_ND = layer.rows(tokens_N)
        near_N = torch.searchsorted(self.sorted_K, tokens_N).clamp_(max=len(self.sorted_K) - 1)
        is_chosen_N = self.sorted_K[near_N] == tokens_N
        own_ND = F.embedding(self.place_K[near_N], self.rows_KD) * layer.row_factor
        return torch.where(is_chosen_N[:, None], own_ND.to(rows_ND.dtype), rows_ND)

    @torch.no_grad()
    def merge_into(self, layer: AdaptedLayer) -> None:
        """Write the rows into the table."""
        table = layer.base.get_parameter("weight")
        table[self.sorted_K] = self.rows_KD[self.place_K].to(table.dtype)


class OverRows(Branch):
    """A branch at the embedding that goes on from some tokens' rows: the frozen ones, or in their place those of new tokens.

    new_rows: the trained rows of new tokens; None where the base has all its tokens.
    """

    def __init__(self) -> None:
        super().__init__()
        self.new_rows: TokenRows | None = None

    def rows(self, tokens_N: Tensor, layer: AdaptedEmbedding, run: Run) -> Tensor:
        """The rows (N, D) of tokens."""
        if self.new_rows is None:
            return layer.rows(tokens_N)
        rows_ND: Tensor = self.new_rows(tokens_N, layer, run)
        return rows_ND


class HeadRows(LinearBranch):
    """The rows (K, I) of K tokens in the place of a head's frozen ones; its bias stays.

    owns: whether the rows train here, or at the embedding that the head is tied to; files hold them under both names.
    """

    tokens_K: Tensor

    def __init__(self, tokens_K: Tensor, rows_KI: nn.Parameter, owns: bool) -> None:
        super().__init__()
        self.rows_KI, self.owns = rows_KI, owns
        self.register_buffer("tokens_K", tokens_K, persistent=False)

    @property
    def tensors(self) -> dict[str, nn.Parameter]:
        """The rows under peft's name, if they are the head's own."""
        return {"trainable_tokens_delta": self.rows_KI} if self.owns else {}

    def file_tensors(self) -> dict[str, Tensor]:
        """The rows, whoever owns them."""
        return {"trainable_tokens_delta": self.rows_KI.detach().clone()}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `file_tensors` gave. Raises RecipeError if the embedding, to which the head is tied, has others."""
        super().load_tensors(tensors)
        if not torch.equal(self.rows_KI, tensors["trainable_tokens_delta"].to(self.rows_KI)):
            raise RecipeError(
                "The adapter has other rows for the head than for the embedding, but this model's head is its embedding.",
                "Choose the base model that the adapter was trained on.",
                field="method.from",
            )

    def forward(self, x_NI: Tensor, layer: AdaptedLinear, run: Run) -> Tensor:
        """The frozen logits, those of the chosen tokens by the trained rows."""
        bias_K = None if layer.bias is None else layer.bias[self.tokens_K]
        return _with_rows(layer.product(x_NI), x_NI, self.tokens_K, self.rows_KI, bias_K)

    def merged(self, weight_OI: Tensor, bias_O: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """W with the trained rows."""
        return weight_OI.index_copy(0, self.tokens_K, self.rows_KI), bias_O


class OutputRows(LinearBranch):
    """Rows (K, I) of a linear layer, and their biases (K,), in the place of the frozen ones of K outputs."""

    index_K: Tensor

    def __init__(self, index_K: Tensor, rows_KI: nn.Parameter, bias_K: nn.Parameter | None, num_outputs: int) -> None:
        super().__init__()
        self.rows_KI, self.bias_K, self.num_outputs = rows_KI, bias_K, num_outputs
        self.register_buffer("index_K", index_K, persistent=False)

    @property
    def tensors(self) -> dict[str, nn.Parameter]:
        """The rows and their biases."""
        bias = {} if self.bias_K is None else {"rows.bias": self.bias_K}
        return {"rows.weight": self.rows_KI, **bias}

    def file_tensors(self) -> dict[str, Tensor]:
        """The same, and which outputs they are."""
        return {"rows.index": self.index_K, **super().file_tensors()}

    @torch.no_grad()
    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `file_tensors` gave. Raises RecipeError for outputs that do not exist or are named twice."""
        index_K = tensors["rows.index"].to(self.index_K)
        in_range = int(index_K.min()) >= 0 and int(index_K.max()) < self.num_outputs
        if not in_range or len(index_K.unique()) < len(index_K):
            raise RecipeError(
                f"The adapter names rows that a layer of {self.num_outputs} outputs does not have, or one of them twice.",
                "Choose the base model that the adapter was trained on.",
                field="method.from",
            )
        self.index_K.copy_(index_K)
        super().load_tensors(tensors)

    def forward(self, x_NI: Tensor, layer: AdaptedLinear, run: Run) -> Tensor:
        """The frozen outputs, the chosen ones by the trained rows."""
        return _with_rows(layer.product(x_NI), x_NI, self.index_K, self.rows_KI, self.bias_K)

    def merged(self, weight_OI: Tensor, bias_O: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """W and c with the trained rows."""
        if bias_O is not None and self.bias_K is not None:
            bias_O = bias_O.index_copy(0, self.index_K, self.bias_K)
        return weight_OI.index_copy(0, self.index_K, self.rows_KI), bias_O


def _with_rows(y_NO: Tensor, x_NI: Tensor, index_K: Tensor, rows_KI: Tensor, bias_K: Tensor | None) -> Tensor:
    """y with the outputs `index_K` computed by other rows; no gradient reaches the ones that they replace."""
    bias_K = None if bias_K is None else bias_K.to(x_NI.dtype)
    own_NK = F.linear(x_NI, rows_KI.to(x_NI.dtype), bias_K)
    return y_NO.index_copy(1, index_K, own_NK.to(y_NO.dtype))
