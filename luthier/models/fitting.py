"""What of a loaded model is changed once for its family's sake, before anything is tuned."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from luthier.models.distances import project_distances_by_run
from luthier.models.families import Family
from luthier.models.heads import rest_pooler


def fit_family(hf: PreTrainedModel, family: Family) -> None:
    """Let the trunk's pooler rest, number its attentions, and project tables of distances for each adapter apart."""
    rest_pooler(hf, family)
    if family.kind == "encoder" and family.attends_by_interface:
        _number_attentions(hf, family)
    if family.distance_norm is not None:
        project_distances_by_run(hf)


def _number_attentions(hf: PreTrainedModel, family: Family) -> None:
    """Let every attention know its layer's index, as most families' do and DistilBERT's do not: prefixes ask for it."""
    stack = hf.get_submodule(f"{family.trunk}.{family.layers}")
    assert isinstance(stack, nn.ModuleList)
    for index, layer in enumerate(stack):
        vars(layer.get_submodule(family.attention)).setdefault("layer_idx", index)
