"""The golden files of the `adapters` library: its models as Luthier loads them, and what it computes with its adapters."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from models.tiny import tiny_tokenizer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from luthier.data.packing import collate
from luthier.data.placeholders import with_placeholders
from luthier.methods import AdapterMethod, Compacter, Houlsby, Parallel, Pfeiffer, PrefixTuning
from luthier.models.attention import FAST, register_attention
from luthier.models.families import Family, family_of
from luthier.models.fast_layers import use_fast_layers
from luthier.models.heads import rest_pooler
from luthier.models.language_model import Identity, LanguageModel
from luthier.models.logits import logits as logits_of
from luthier.models.reading import read_anatomy
from luthier.types import Example, Origin, Part

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "adapters"
CONFIG, WEIGHTS = "adapter_config.json", "adapter.safetensors"
METHODS: dict[str, type[AdapterMethod]] = {
    "houlsby": Houlsby,
    "houlsby-cross": Houlsby,
    "pfeiffer": Pfeiffer,
    "pfeiffer-in-part": Pfeiffer,
    "parallel": Parallel,
    "compacter": Compacter,
    "compacter-plus-plus": Compacter,
    "prefix": PrefixTuning,
    "prefix-network": PrefixTuning,
}
CASES = sorted((path.parent.parent.name, path.parent.name) for path in GOLDEN.glob(f"*/*/{CONFIG}"))
ENCODER_DECODERS = ("t5", "t5-gated", "bart")


def golden_model(name: str) -> LanguageModel:
    """The base of some golden adapters, as Luthier loads it."""
    values = json.loads((GOLDEN / name / "config.json").read_text())
    family = family_of(values["model_type"])
    register_attention()
    hf = _unloaded(family, values)
    hf.load_state_dict(load_file(GOLDEN / name / "base.safetensors"))
    hf.requires_grad_(False).eval()
    rest_pooler(hf, family)
    anatomy = read_anatomy(hf, family)
    use_fast_layers(hf, anatomy, norm=True, gated_mlp=True, linear=True)
    return LanguageModel(hf, tiny_tokenizer(), anatomy, Identity(f"golden-{name}", "0" * 64))


def _unloaded(family: Family, values: dict[str, Any]) -> PreTrainedModel:
    auto: Any = AutoModelForCausalLM
    if family.kind == "encoder":
        auto = AutoModelForSequenceClassification
    elif family.kind == "encoder-decoder":
        auto = AutoModelForSeq2SeqLM
    with torch.random.fork_rng():
        config = AutoConfig.for_model(values.pop("model_type"), **values)
        hf: PreTrainedModel = auto.from_config(config, attn_implementation=FAST)
    if not values.get("tie_word_embeddings", True):  # a T5's config ties them for all that, until a file is read
        head: nn.Module = hf.get_output_embeddings()
        head.weight = nn.Parameter(head.get_parameter("weight").detach().clone())
    if family.kind == "encoder-decoder":
        assert hf.generation_config is not None
        hf.generation_config.decoder_start_token_id = values["decoder_start_token_id"]
    return hf


def golden_logits(folder: Path) -> tuple[Tensor, Tensor]:
    """The rows (B, T) of a case, and the library's logits (B, T, V)."""
    tensors = load_file(folder / "logits.safetensors")
    return tensors["tokens"], tensors["logits"]


@torch.no_grad()
def logits(
    model: LanguageModel, tokens_BT: Tensor, adapter: str | None = "default", sources_BS: Tensor | None = None
) -> Tensor:
    """What Luthier says of these rows: logits (B, T, V), or of an encoder the last hidden states (B, T, D).

    An encoder-decoder answers with each row to its source, or if there is none to the row's end, read backwards.
    """
    kind = model.anatomy.family.kind
    rows = [_example(row_T, causal=kind != "encoder") for row_T in tokens_BT]
    if kind == "encoder-decoder":
        sources_BS = tokens_BT[:, 2:].flip(1) if sources_BS is None else sources_BS
        pairs = zip(rows, sources_BS, strict=True)
        rows = [replace(row, source_S=source_S.numpy()) for row, source_S in pairs]
    rows = [with_placeholders(row, model.num_virtual(adapter), model.num_virtual_answer(adapter)) for row in rows]
    hidden_ND = model.hidden(collate(rows, model.layout, pad_id=0), adapter).flatten(0, 1)
    own = [states[-tokens_BT.shape[1] :] for states in hidden_ND.split([row.num_part_tokens for row in rows])]
    if kind == "encoder":
        return torch.stack(own)
    return torch.stack([logits_of(model.hf, model.anatomy, states) for states in own])


def _example(tokens_T: Tensor, *, causal: bool) -> Example:
    at = np.array([0], dtype=np.int64)
    tokens = tokens_T.numpy()
    return Example(
        (Part(tokens, causal=causal),), at, tokens[1:2], np.ones(1, dtype=np.float32), at, 0, Origin("golden", 1)
    )


def copied(folder: Path, name: str, case: str) -> Path:
    """A copy of a golden adapter that may be changed."""
    shutil.copytree(GOLDEN / name / case, folder / case)
    return folder / case


def changed_config(folder: Path, *, outer: dict[str, Any] | None = None, **inner: Any) -> None:
    """Change fields of a library's config, those of `config` by name; None takes a field of the outside away."""
    config = json.loads((folder / CONFIG).read_text())
    config["config"] |= inner
    config |= outer or {}
    (folder / CONFIG).write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def changed_tensors(folder: Path, add: dict[str, Tensor], drop: str | None = None) -> None:
    """Add tensors, and take away those whose keys hold `drop`."""
    tensors = {**load_file(folder / WEIGHTS), **add}
    save_file({key: t for key, t in tensors.items() if drop is None or drop not in key}, folder / WEIGHTS)
