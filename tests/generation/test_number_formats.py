"""The engine over bases in bf16 and in four bits: transformers' answers, the trainer's numbers, and mixed adapters.

bf16 holds 8 bits of a number: between 2 and 4, where the largest scores of these models are, steps are of 2⁻⁶. Two ways to the same
score differ by a few of them, so that answers may part where two tokens are nearly as likely.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from generation.reread import trainer_logprobs
from models.quantized import quantized_for
from models.tiny import plain_model, tiny_model
from models.tuned import randomize
from torch import Tensor, nn
from transformers import PreTrainedModel

from luthier.generation.engine import Engine, Request, generate
from luthier.generation.settings import Sampling
from luthier.methods import IA3, LoRA, PrefixTuning, PromptTuning
from luthier.methods.adapter_attachment import AdapterAttachment
from luthier.methods.lora_layers import LoRABranch
from luthier.models.language_model import LanguageModel

STEP = 2**-6
NUM_TOKENS = 9


@pytest.fixture(scope="module")
def half() -> tuple[LanguageModel, dict[str, LoRABranch]]:
    """A model in bf16 with a LoRA adapter, and the adapter's branches by layer."""
    model = tiny_model("llama", dtype=torch.bfloat16)
    attachment = LoRA(rank=2).attach(model, "lora", seed=0)
    assert isinstance(attachment, AdapterAttachment)
    randomize(attachment, 0.15)
    branches = {name: each for name, each in attachment.branches.items() if isinstance(each, LoRABranch)}
    assert model.dtype == torch.bfloat16
    assert all(each.a_RI.dtype == torch.float32 for each in branches.values())
    return model, branches


def prompts(number: int, longest: int = 20) -> list[tuple[int, ...]]:
    """Random prompts of different lengths."""
    draw = random.Random(0)
    return [tuple(draw.randrange(3, 61) for _ in range(draw.randrange(1, longest))) for _ in range(number)]


def with_updates(plain: PreTrainedModel, branches: dict[str, LoRABranch]) -> PreTrainedModel:
    """The model of transformers with s · x Aᵀ Bᵀ added behind each layer that LoRA adapts."""

    def added_by(branch: LoRABranch) -> object:
        a_RI, b_OR = (weight.detach().to(torch.bfloat16) for weight in (branch.a_RI, branch.b_OR))

        def added(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
            return output + branch.scale * (inputs[0] @ a_RI.T @ b_OR.T)

        return added

    for name, branch in branches.items():
        plain.get_submodule(name).register_forward_hook(added_by(branch))  # type: ignore[arg-type]
    return plain


def said_by_transformers(
    plain: PreTrainedModel, prompt: tuple[int, ...], stop_ids: Sequence[int]
) -> tuple[tuple[int, ...], list[Tensor]]:
    """The greedy answer of transformers' own loop, and the scores that each of its tokens was chosen by."""
    prompt_1T = torch.tensor([prompt])
    said = plain.generate(  # type: ignore[operator]
        prompt_1T, attention_mask=torch.ones_like(prompt_1T), max_new_tokens=NUM_TOKENS, do_sample=False,
        eos_token_id=list(stop_ids), pad_token_id=0, output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    return tuple(said.sequences[0, len(prompt) :].tolist()), [logits_1V[0].float() for logits_1V in said.logits]


@pytest.mark.parametrize("adapter", [None, "lora"])
def test_greedy_answers_in_bf16_are_those_of_transformers_up_to_a_near_tie(
    half: tuple[LanguageModel, dict[str, LoRABranch]], adapter: str | None
) -> None:
    model, branches = half
    plain = plain_model("llama", dtype=torch.bfloat16)
    plain = plain if adapter is None else with_updates(plain, branches)
    asked = prompts(24)
    ours = generate(model, [Request(prompt, Sampling(max_new_tokens=NUM_TOKENS), adapter) for prompt in asked])
    num_same = 0
    for prompt, answer in zip(asked, ours, strict=True):
        theirs, scores = said_by_transformers(plain, prompt, sorted(model.stop_ids))
        parted = [at for at, pair in enumerate(zip(answer.tokens, theirs, strict=False)) if pair[0] != pair[1]]
        if not parted:
            assert len(answer.tokens) == len(theirs)
            num_same += 1
            continue
        score_V = scores[parted[0]]
        assert float(score_V.max() - score_V[answer.tokens[parted[0]]]) <= 4 * STEP
    assert num_same >= len(asked) / 2


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("adapter", [None, "lora"])
def test_log_probabilities_in_bf16_are_those_of_the_trainer_to_within_its_rounding(
    half: tuple[LanguageModel, dict[str, LoRABranch]], adapter: str | None, temperature: float
) -> None:
    """A quarter of a step in the mean: 0.004 nats, a fifth of what `objective.generation.max_gap` allows another engine."""
    model, _ = half
    requests = [
        Request(prompt, Sampling(temperature=temperature, max_new_tokens=20, seed=row), adapter, top_logprobs=0)
        for row, prompt in enumerate(prompts(16))
    ]
    gaps: list[Tensor] = []
    for request, answer in zip(requests, generate(model, requests), strict=True):
        assert answer.logprobs is not None
        found_N = torch.tensor([each.logprob for each in answer.logprobs])
        gaps.append((found_N - trainer_logprobs(model, request.prompt, answer.tokens, adapter)).abs())
    gap_N = torch.cat(gaps)
    assert len(gap_N) > 100
    assert float(gap_N.mean()) < STEP / 4
    assert float(gap_N.max()) < 4 * STEP


def adapters_of_steps(monkeypatch: pytest.MonkeyPatch) -> list[set[str | None]]:
    """Takes the adapters of each step from now on."""
    computed: list[set[str | None]] = []
    read = LanguageModel.read

    def watched(self: LanguageModel, *args: Any) -> Tensor:
        computed.append({run.adapter for run in args[2]})
        return read(self, *args)

    monkeypatch.setattr(LanguageModel, "read", watched)
    return computed


def test_adapters_mixed_over_four_bits_say_what_each_says_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = quantized_for(LoRA(), tiny_model("llama"))
    methods = {
        "lora": LoRA(rank=2),
        "other": LoRA(rank=3),
        "ia3": IA3(),
        "prompt": PromptTuning(num_virtual_tokens=3),
        "prefix": PrefixTuning(num_virtual_tokens=2),
    }
    for name, method in methods.items():
        randomize(method.attach(model, name, seed=0), 0.3)
    names = (None, "lora", "other", "prompt", "ia3", "prefix", "lora", None)
    requests = [
        Request(prompt, Sampling(temperature=1.0, max_new_tokens=3 + row, seed=row), name, top_logprobs=0)
        for row, (prompt, name) in enumerate(zip(prompts(8), names, strict=True))
    ]
    apart = [generate(model, [request])[0] for request in requests]
    computed = adapters_of_steps(monkeypatch)
    engine = Engine(model, max_rows=8, cache_tokens=2048)
    asked = [engine.submit(request) for request in requests]
    while not engine.is_idle:
        engine.step()
    assert computed[0] == {None, *methods}
    for alone, mixed in zip(apart, asked, strict=True):
        (found,) = mixed.completed
        assert found.tokens == alone.tokens
        assert found.logprobs is not None
        assert alone.logprobs is not None
        assert [each.logprob for each in found.logprobs] == pytest.approx(
            [each.logprob for each in alone.logprobs], abs=1e-5
        )
    by_name = {
        name: generate(model, [Request((5, 9, 30), Sampling(max_new_tokens=NUM_TOKENS), name)])[0].tokens
        for name in (None, *methods)
    }
    assert len(set(by_name.values())) >= 4, "the adapters are too much alike for a mistaken one to show"
