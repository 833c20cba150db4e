"""DeBERTa's attention: a table of distances that goes through a layer's projections of queries and keys as tokens do.

He et al. 2020, https://arxiv.org/abs/2006.03654. The table's rows are no tokens of the batch, so they have no adapter of their
own: each run's tokens meet the table as their adapter projects it, and as it norms it. Then a merged model computes the
same, and rows of a batch may each have their own adapter. Dropout within an adapter leaves the table alone.

Shapes: N rows of the batch times heads, T tokens of a row, S distances, D width, E width of a head.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.deberta_v2.modeling_deberta_v2 import DebertaV2Encoder, DisentangledSelfAttention

from luthier.models.call import Call, Run, calling, current_call


def project_distances_by_run(hf: PreTrainedModel) -> None:
    """From now on, every attention of a DeBERTa norms and projects the table once for each adapter of a call."""
    for encoder in hf.modules():
        if not isinstance(encoder, DebertaV2Encoder) or not encoder.relative_attention:
            continue
        vars(encoder)["get_rel_embedding"] = partial(_table, encoder)
        for attention in encoder.modules():
            if isinstance(attention, DisentangledSelfAttention):
                vars(attention)["disentangled_attention_bias"] = partial(_bias_by_run, attention, encoder)


def _table(encoder: DebertaV2Encoder) -> Tensor:
    """The table (S, D) as it is stored: what norms it is the attention's affair."""
    return encoder.rel_embeddings.get_parameter("weight")


def _bias_by_run(
    attention: DisentangledSelfAttention,
    encoder: DebertaV2Encoder,
    q_NTE: Tensor,
    k_NTE: Tensor,
    distance_1TT: Tensor,
    table_SD: Tensor,
    num_terms: int,
) -> Tensor:
    """What the distances add to the scores, shape (N, T, T)."""

    def of(rows: slice, adapter: str | None) -> Tensor:
        with calling(Call(None, (Run(0, len(table_SD), adapter),))):
            normed_SD = encoder.LayerNorm(table_SD) if "layer_norm" in encoder.norm_rel_ebd else table_SD
            bias: Tensor = DisentangledSelfAttention.disentangled_attention_bias(  # type: ignore[no-untyped-call]
                attention, q_NTE[rows], k_NTE[rows], distance_1TT, normed_SD, num_terms
            )
            return bias

    runs, (_, per_row, _) = current_call().runs, q_NTE.shape
    if len(runs) == 1:
        return of(slice(None), runs[0].adapter)
    heads = attention.num_attention_heads
    return torch.cat(
        [of(slice(run.start // per_row * heads, run.stop // per_row * heads), run.adapter) for run in runs]
    )
