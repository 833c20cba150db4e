"""Make the golden numbers of PPO: what the last release of TRL that had it computes, in numbers that can be compared.

    python3.11 -m venv ENV
    ENV/bin/pip install torch==2.13.0 transformers==5.23.0 trl==1.12.0
    ENV/bin/python make_trl_ppo_golden.py

`trl.experimental.ppo.PPOTrainer` carries out its whole `train()` on tiny random models, two epochs of two minibatches; kept is what it
holds when it first and last calls backward. `full-length` has answers that all reach response_length, `whitened` also whitens the
rewards, `ended` has answers that end before.
Gradients are those of the trainer's own loss with respect to logits (after the temperature) and values.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FOLDER = Path(__file__).parent / "trl-ppo"
WORDS = 12


def listed(value: Any) -> Any:
    """Numbers as JSON has them, with the eight digits that fp32 needs."""
    if isinstance(value, Tensor):
        value = value.detach()
        value = value.int() if value.dtype == torch.bool else value
        return listed(value.tolist())
    if isinstance(value, (list, tuple)):
        return [listed(each) for each in value]
    return float(f"{value:.8g}") if isinstance(value, float) else value


def write(name: str, found: dict[str, Any]) -> None:
    """One file."""
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name}.json").write_text(json.dumps(listed_all(found)) + "\n")


def listed_all(found: Any) -> Any:
    """The same with every tensor as lists."""
    if isinstance(found, dict):
        return {key: listed_all(value) for key, value in found.items()}
    if isinstance(found, list) and found and isinstance(found[0], dict):
        return [listed_all(each) for each in found]
    return listed(found)


def tokenizer() -> Any:
    """Words w0, w1 and so on; padding and end are words of their own."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"[PAD]": 0, "[EOS]": 1, **{f"w{index}": index for index in range(2, WORDS)}}
    made = Tokenizer(models.WordLevel(words, unk_token="[PAD]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", eos_token="[EOS]", padding_side="left")


def capture(seed: int, ends: bool, **settings: Any) -> dict[str, Any]:
    """One rollout of the trainer: its numbers, and those of each minibatch."""
    import numpy as np
    from datasets import Dataset
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    torch.manual_seed(seed)
    np.random.seed(seed)
    sizes = {
        "vocab_size": WORDS, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None, "initializer_range": 0.6,
    }  # fmt: skip
    config, scored = LlamaConfig(**sizes), LlamaConfig(**sizes, num_labels=1)
    policy, reference = LlamaForCausalLM(config), LlamaForCausalLM(config)
    reference.load_state_dict({name: t + 0.1 * torch.randn_like(t) for name, t in policy.state_dict().items()})
    if not ends:  # neither padding nor end is ever drawn, so that all answers are as long as they may be
        policy.generation_config.suppress_tokens = None
        for model in (policy, reference):
            model.lm_head.register_forward_hook(lambda module, inputs, logits: never(logits))
    reward, value = LlamaForSequenceClassification(scored), LlamaForSequenceClassification(scored)
    rows = [{"input_ids": torch.randint(2, WORDS, (3,)).tolist()} for _ in range(32)]
    with tempfile.TemporaryDirectory() as folder:
        arguments = PPOConfig(
            output_dir=folder, per_device_train_batch_size=settings.pop("rows", 6), gradient_accumulation_steps=2,
            num_mini_batches=2, num_ppo_epochs=2, response_length=7, temperature=0.7, total_episodes=1,
            local_rollout_forward_batch_size=64, learning_rate=0.05, stop_token="eos" if ends else None,
            num_sample_generations=0, report_to=[], use_cpu=True, bf16=False, save_strategy="no", seed=seed, **settings,
        )  # fmt: skip
        trainer = PPOTrainer(
            args=arguments, processing_class=tokenizer(), model=policy, ref_model=reference, reward_model=reward,
            train_dataset=Dataset.from_list(rows), value_model=value,
        )  # fmt: skip
        found: dict[str, Any] = {}
        backward = trainer.accelerator.backward

        def seen(loss: Tensor, **more: Any) -> None:
            keep(found, sys._getframe(1).f_locals)
            backward(loss, **more)

        trainer.accelerator.backward = seen
        trainer.train()
    names = ("kl_coef", "cliprange", "cliprange_value", "vf_coef", "gamma", "lam", "temperature", "whiten_rewards")
    found["minibatches"] = [found["minibatches"][0], found["minibatches"][-1]]
    found["settings"] = {name: getattr(arguments, name) for name in names}
    return found


def never(logits: Tensor) -> Tensor:
    """The logits with padding and end out of reach."""
    return torch.cat([torch.full_like(logits[..., :2], -30.0), logits[..., 2:]], -1)


def keep(found: dict[str, Any], held: dict[str, Any]) -> None:
    """What the trainer holds when it calls backward."""
    if "rollout" not in found:
        names = (
            "responses", "logprobs", "ref_logprobs", "scores", "values", "padding_mask", "padding_mask_p1", "kl", "rewards",
            "advantages", "returns",
        )  # fmt: skip
        found["rollout"] = {name: held[name].clone() for name in names}
        found["minibatches"] = []
    logits, values = held["logits"], held["vpred_temp"]
    by_logits, by_values = torch.autograd.grad(held["loss"], [logits, values], retain_graph=True)
    start = held["context_length"] - 1
    found["minibatches"].append(
        {
            "rows": list(map(int, held["micro_batch_inds"])),
            "logits": logits.clone(),
            "new_logprobs": held["new_logprobs"].clone(),
            "vpred": held["vpred"].clone(),
            "pg_loss": held["pg_loss"].item(),
            "vf_loss": held["vf_loss"].item(),
            "loss": held["loss"].item(),
            "gradient_of_logits": by_logits,
            "gradient_of_values": by_values[:, start:-1].squeeze(-1),
        }
    )


def main() -> None:
    """All files."""
    write("full-length", capture(0, ends=False, rows=3))
    write("whitened", capture(1, ends=False, rows=8, whiten_rewards=True, kl_coef=0.1, gamma=0.98, lam=0.9))
    write("ended", capture(2, ends=True, rows=4, missing_eos_penalty=1.0))


if __name__ == "__main__":
    main()
