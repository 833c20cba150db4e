"""The golden files of the `adapters` library: its models as Luthier loads them, and what it computes with its adapters."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from models.tiny import tiny_tokenizer
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from luthier.data.packing import collate
from luthier.data.placeholders import with_placeholders
from luthier.methods import AdapterMethod, Compacter, Houlsby, Parallel, Pfeiffer, PrefixTuning
from luthier.models.attention import FAST, register_attention
from luthier.models.families import family_of
from luthier.models.fast_layers import use_fast_layers
from luthier.models.heads import rest_pooler
from luthier.models.language_model import Identity, LanguageModel
from luthier.models.reading import read_anatomy
from luthier.types import Example, Origin, Part

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "adapters"
CONFIG, WEIGHTS = "adapter_config.json", "adapter.safetensors"
METHODS: dict[str, type[AdapterMethod]] = {
    "houlsby": Houlsby,
    "pfeiffer": Pfeiffer,
    "parallel": Parallel,
    "compacter": Compacter,
    "compacter-plus-plus": Compacter,
    "prefix": PrefixTuning,
    "prefix-network": PrefixTuning,
}
CASES = sorted((path.parent.parent.name, path.parent.name) for path in GOLDEN.glob(f"*/*/{CONFIG}"))


def golden_model(name: str) -> LanguageModel:
    """The base of some golden adapters, as Luthier loads it."""
    values = json.loads((GOLDEN / name / "config.json").read_text())
    family = family_of(values["model_type"])
    register_attention()
    auto: Any = AutoModelForSequenceClassification if family.kind == "encoder" else AutoModelForCausalLM
    with torch.random.fork_rng():
        config = AutoConfig.for_model(values.pop("model_type"), **values)
        hf = auto.from_config(config, attn_implementation=FAST)
    hf.load_state_dict(load_file(GOLDEN / name / "base.safetensors"))
    hf.requires_grad_(False).eval()
    rest_pooler(hf, family)
    anatomy = read_anatomy(hf, family)
    use_fast_layers(hf, anatomy, norm=True, gated_mlp=True, linear=True)
    return LanguageModel(hf, tiny_tokenizer(), anatomy, Identity(f"golden-{name}", "0" * 64))


def golden_logits(folder: Path) -> tuple[Tensor, Tensor]:
    """The rows (B, T) of a case, and the library's logits (B, T, V)."""
    tensors = load_file(folder / "logits.safetensors")
    return tensors["tokens"], tensors["logits"]


@torch.no_grad()
def logits(model: LanguageModel, tokens_BT: Tensor, adapter: str | None = "default") -> Tensor:
    """What Luthier says of these rows: logits (B, T, V), or of an encoder the last hidden states (B, T, D)."""
    is_encoder = model.anatomy.family.kind == "encoder"
    rows = [with_placeholders(_example(row_T, not is_encoder), model.num_virtual(adapter)) for row_T in tokens_BT]
    hidden_ND = model.hidden(collate(rows, model.layout, pad_id=0), adapter).flatten(0, 1)
    own = [states[-tokens_BT.shape[1] :] for states in hidden_ND.split([row.num_tokens for row in rows])]
    if is_encoder:
        return torch.stack(own)
    found: Tensor = model.hf.get_submodule(model.anatomy.head)(torch.stack(own))
    return found


def _example(tokens_T: Tensor, causal: bool) -> Example:
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
