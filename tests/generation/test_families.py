"""Generation through `LanguageModel.decode`, on a tiny random model of each family that decodes."""

import random

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from luthier.generation.engine import Request, generate
from luthier.generation.settings import Sampling
from luthier.models.attention import implementation_of, register_attention
from luthier.models.families import family_of
from luthier.models.language_model import Identity, LanguageModel
from luthier.models.reading import read_anatomy

SAMPLING = Sampling(max_new_tokens=8)
LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
CONFIGS = {
    "llama": LLAMA,
    "mistral": {**LLAMA, "sliding_window": 5},
    "qwen2": LLAMA,
    "qwen3": {**LLAMA, "head_dim": 8},
    "phi3": LLAMA,
    "phi": LLAMA,
    "granite": {**LLAMA, "logits_scaling": 2.0},
    "gemma": {**LLAMA, "head_dim": 8},
    "gemma2": {**LLAMA, "head_dim": 8, "sliding_window": 5, "query_pre_attn_scalar": 8},
    "gemma3_text": {**LLAMA, "head_dim": 8, "sliding_window": 5, "query_pre_attn_scalar": 8},
    "gpt_oss": {**LLAMA, "head_dim": 8, "sliding_window": 5, "num_local_experts": 3, "num_experts_per_tok": 2},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "gpt_neox": {**LLAMA, "rotary_pct": 0.5},
    "opt": {**LLAMA, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "falcon": {
        **LLAMA,
        "num_kv_heads": 1,
        "multi_query": True,
        "parallel_attn": True,
        "new_decoder_architecture": False,
    },
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
}


class NoTokenizer:
    """Stands where the text does not matter."""

    eos_token_id = None
    pad_token_id = None

    def decode(self, tokens, **kwargs):
        return " ".join(map(str, tokens))


def tiny_model(model_type):
    register_attention()
    torch.manual_seed(0)
    ends = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": 96}
    length = {} if model_type in ("gpt2", "bloom") else {"max_position_embeddings": 64}
    config = AutoConfig.for_model(
        model_type, vocab_size=97, initializer_range=0.3, **length, **ends, **CONFIGS[model_type]
    )
    family = family_of(model_type)
    implementation = implementation_of(family, True)
    hf = AutoModelForCausalLM.from_config(config, attn_implementation=implementation).eval().requires_grad_(False)
    return LanguageModel(hf, NoTokenizer(), read_anatomy(hf, family), Identity("tiny", ""))


def prompts(number):
    draw = random.Random(1)
    return [tuple(draw.randrange(96) for _ in range(length)) for length in draw.sample(range(1, 20), number)]


@pytest.mark.parametrize("model_type", CONFIGS)
def test_greedy_answers_in_a_padded_batch_are_those_of_transformers(model_type):
    model = tiny_model(model_type)
    requests = [Request(prompt, SAMPLING) for prompt in prompts(5)]
    for request, answer in zip(requests, generate(model, requests), strict=True):
        prompt_1T = torch.tensor([request.prompt])
        said_1T = model.hf.generate(
            prompt_1T,
            attention_mask=torch.ones_like(prompt_1T),
            max_new_tokens=SAMPLING.max_new_tokens,
            do_sample=False,
            pad_token_id=0,
        )
        assert answer.tokens == tuple(said_1T[0, prompt_1T.shape[1] :].tolist())


@pytest.mark.parametrize("model_type", CONFIGS)
def test_padding_changes_no_score(model_type):
    model = tiny_model(model_type)
    prompt = prompts(1)[0]
    width = len(prompt) + 7
    tokens_BT = torch.tensor([[0] * 7 + list(prompt), [5] * width])
    mask_BL = torch.ones(2, width, dtype=torch.bool)
    mask_BL[0, :7] = False
    positions_BT = (mask_BL.cumsum(-1) - 1).clamp(min=0)
    padded_V = model.decode(tokens_BT, positions_BT, mask_BL, DynamicCache())[0]
    alone_V = model.decode(torch.tensor([prompt]), torch.arange(len(prompt))[None], mask_BL[:1, 7:], DynamicCache())[0]
    assert bool(torch.isfinite(padded_V).all())
    torch.testing.assert_close(padded_V, alone_V, rtol=0, atol=1e-5 * float(alone_V.abs().max()))
