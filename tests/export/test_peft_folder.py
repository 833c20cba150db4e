"""What vLLM and SGLang serve of adapters, and what they are told; the rest is refused with the mend."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from luthier.errors import RecipeError
from luthier.export.peft_folder import SERVED, check_served, copy_adapter
from luthier.models.anatomy import Anatomy
from luthier.models.loading import load_model
from luthier.models.settings import ModelSettings


@pytest.fixture(scope="module")
def anatomy(tiny_model: Path) -> Anatomy:
    return load_model(ModelSettings(name=str(tiny_model)), lambda text: None).anatomy


def config(**parts: Any) -> dict[str, Any]:
    return {"peft_type": "LORA", "r": 16, "bias": "none", "target_modules": ["q_proj", "down_proj"], **parts}


@pytest.mark.parametrize(("rank", "told"), [(1, 8), (8, 8), (9, 16), (300, 320), (512, 512)])
def test_the_servers_rank_is_the_least_that_the_adapter_fits_in(rank: int, told: int, anatomy: Anatomy) -> None:
    assert check_served(config(r=rank), anatomy).max_rank == told


@pytest.mark.parametrize(
    ("parts", "fault"),
    [
        ({"r": 513}, "rank is 513, and vLLM serves at most 512"),
        ({"peft_type": "LOHA"}, "LOHA"),
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "biases"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
        ({"target_modules": ["q_proj", "lm_head"]}, "lm_head"),
    ],
)
def test_what_they_do_not_serve_is_refused(parts: dict[str, Any], fault: str, anatomy: Anatomy) -> None:
    with pytest.raises(RecipeError, match=fault) as caught:
        check_served(config(**parts), anatomy)
    assert "--to merged" in caught.value.mend


TAKES_LORA = {
    "LlamaForCausalLM": True, "MistralForCausalLM": True, "MixtralForCausalLM": True, "Qwen2ForCausalLM": True, "Qwen3ForCausalLM": True,
    "Qwen2MoeForCausalLM": True, "Qwen3MoeForCausalLM": True, "GemmaForCausalLM": True, "Gemma2ForCausalLM": True, "Gemma3ForCausalLM": True,
    "PhiForCausalLM": True, "Phi3ForCausalLM": True, "OlmoForCausalLM": True, "Olmo2ForCausalLM": True, "GraniteForCausalLM": True,
    "OPTForCausalLM": True, "Starcoder2ForCausalLM": True, "GPTBigCodeForCausalLM": True, "GPTNeoXForCausalLM": False,
    "GPT2LMHeadModel": False, "GPTJForCausalLM": False, "BloomForCausalLM": False, "FalconForCausalLM": False, "MPTForCausalLM": False,
    "StableLmForCausalLM": False, "OlmoeForCausalLM": False, "DbrxForCausalLM": False, "MambaForCausalLM": False,
}  # fmt: skip
"""Column LoRA of vLLM's table of supported text models, as of its commit 0046f77."""


@pytest.mark.parametrize("model_type", SERVED)
def test_every_type_that_is_said_to_be_served_takes_adapters_in_vllms_table(model_type: str) -> None:
    assert TAKES_LORA[MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]]


@pytest.mark.parametrize("model_type", ["gpt_neox", "gpt2", "falcon"])
def test_a_type_that_takes_none_there_is_refused(model_type: str, anatomy: Anatomy) -> None:
    with pytest.raises(RecipeError, match=f"'{model_type}' take no adapters"):
        check_served(config(), replace(anatomy, model_type=model_type))


def test_an_adapter_in_luthiers_own_form_is_not_called_pefts(tmp_path: Path) -> None:
    (tmp_path / "luthier_adapter.json").write_text("{}")
    with pytest.raises(RecipeError, match="peft has no adapter of kind 'warp'"):
        copy_adapter(tmp_path, tmp_path, "warp")
