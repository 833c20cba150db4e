"""How far a model's positions reach, as its config says."""

from __future__ import annotations

from transformers import PreTrainedConfig

from luthier.models.families import family_of


def context_length(config: PreTrainedConfig) -> int | None:
    """The most positions that the model was made for; None if its config does not say."""
    values = vars(config)  # what to_dict() makes a deep copy of, and this is asked of every prompt
    for key in ("max_position_embeddings", "n_positions") if family_of(config.model_type).positions_end else ():
        if values.get(key) is not None:
            return int(values[key]) - first_position(config)
    return None


def first_position(config: PreTrainedConfig) -> int:
    """What the model calls the position that batches call 0."""
    return int(config.pad_token_id) + 1 if family_of(config.model_type).positions_follow_padding else 0


def longest_stable_row(config: PreTrainedConfig) -> int | None:
    """The longest row whose rotary positions do not depend on what else is in the batch; None if none does.

    `dynamic` and `longrope` scaling choose their frequencies by the longest position of the whole call.
    """
    values = vars(config)
    rope = values.get("rope_parameters") or {}
    if rope.get("rope_type") not in ("dynamic", "longrope"):
        return None
    original = rope.get("original_max_position_embeddings") or values.get("original_max_position_embeddings")
    return int(original or values["max_position_embeddings"])


def longest_row(config: PreTrainedConfig) -> int | None:
    """The longest row that the model may be trained on; None if its positions set no limit."""
    limits = [limit for limit in (context_length(config), longest_stable_row(config)) if limit is not None]
    return min(limits, default=None)
