"""Where each head of each layer looks in a text: the base model beside the tuned one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from luthier.data.packing import collate
from luthier.data.placeholders import with_placeholders
from luthier.errors import UsageError
from luthier.models.language_model import LanguageModel
from luthier.store.pictures import write_png
from luthier.types import Example, Origin, Part

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_TOKENS = 128
"""A picture of more would show nothing."""


@dataclass(frozen=True)
class AttentionMaps:
    """A text's tokens, and what each takes of each: fp32, shape (L, H, T, T), of the base and of the tuned model."""

    tokens: tuple[str, ...]
    base_LHTT: Tensor
    tuned_LHTT: Tensor

    @property
    def change_LH(self) -> Tensor:
        """How far each head's look moved: half the sum of |tuned − base| over positions, mean over tokens; 0 to 1."""
        return 0.5 * (self.tuned_LHTT - self.base_LHTT).abs().sum(-1).mean(-1)

    def as_json(self) -> dict[str, Any]:
        """The tokens, and each head's change, as plain JSON."""
        return {"tokens": list(self.tokens), "change_by_layer_and_head": self.change_LH.tolist()}


def attention_maps(text: str, base: LanguageModel, tuned: LanguageModel, adapter: str | None) -> AttentionMaps:
    """Both models' attention over a text. Raises UsageError for a text without tokens or with too many.

    What the text takes of an adapter's virtual tokens is left out, so that such rows sum to less than 1.
    """
    ids = tuned.tokenizer(text, add_special_tokens=False)["input_ids"]
    if not 0 < len(ids) <= MOST_TOKENS:
        raise UsageError(f"The text has {len(ids)} tokens.", f"Give one of 1 to {MOST_TOKENS} tokens.")
    empty = np.zeros(0, dtype=np.int64)
    part = Part(np.array(ids, dtype=np.int64))
    example = Example((part,), empty, empty, np.zeros(0, dtype=np.float32), empty, 0, Origin("text", 1))
    tokens = tuple(str(tuned.tokenizer.decode([token])) for token in ids)
    num_virtual = tuned.num_virtual(adapter)
    batch = collate([example], tuned.layout, tuned.pad_id)
    placed = collate([with_placeholders(example, num_virtual)], tuned.layout, tuned.pad_id)
    tuned_LHTT = tuned.attention(placed, adapter)[..., num_virtual:, num_virtual:]
    return AttentionMaps(tokens, base.attention(batch), tuned_LHTT)


def write_attention_plot(maps: AttentionMaps, path: Path) -> None:
    """Write a PNG: a row a layer, two columns a head (base, tuned), each a map of queries against keys."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    num_layers, num_heads = maps.base_LHTT.shape[:2]
    figure = Figure(figsize=(0.55 * 2 * num_heads + 1.5, 0.6 * num_layers + 1.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(num_layers, 2 * num_heads, squeeze=False)
    for layer in range(num_layers):
        for head in range(num_heads):
            _draw(grid[layer][2 * head], maps.base_LHTT[layer, head])
            _draw(grid[layer][2 * head + 1], maps.tuned_LHTT[layer, head])
        grid[layer][0].set_ylabel(str(layer), rotation=0, ha="right", va="center", fontsize=7)
    for head in range(num_heads):
        grid[0][2 * head].set_title(f"head {head}\nbase", fontsize=6)
        grid[0][2 * head + 1].set_title("tuned", fontsize=6)
    figure.suptitle(f"attention over {len(maps.tokens)} tokens, a row a layer (queries down, keys across)", fontsize=9)
    write_png(figure, path)


def _draw(axes: Axes, weight_TT: Tensor) -> None:
    axes.imshow(torch.sqrt(weight_TT).numpy(), cmap="viridis", vmin=0, vmax=1)  # the root, so that faint looks show
    axes.set_xticks([])
    axes.set_yticks([])
