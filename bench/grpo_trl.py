"""One contestant of `bench.grpo`: TRL's `GRPOTrainer` with `peft` and transformers' own generation, in a process of its own.

All answers of a step are written in one batch, which is its fastest way; they are learned from in micro-batches of one group.
"""

from __future__ import annotations

import runpy
import tempfile

from bench.side import begin


def main() -> None:
    """Do the work once and write what was measured."""
    arguments = begin("TRL GRPOTrainer + peft", own_allocator=False)
    # only now, so that the allocator is set before torch takes its first memory
    from pathlib import Path
    from typing import Any

    import peft
    import transformers
    import trl
    from datasets import Dataset

    from bench import peer
    from bench.clock import StepClock
    from bench.prompts import GROUP, read_prompts

    work = read_prompts(arguments.work)
    clock = StepClock()
    measure = peer.Measure(clock)
    known = dict(zip(work.texts, work.prompt_ids, strict=True))
    function = runpy.run_path(work.reward)["reward"]

    def reward(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
        found: list[float] = function(prompts, [completion[0]["content"] for completion in completions], [])
        return found

    class OfTokens(trl.GRPOTrainer):
        """The trainer, given the prompts' tokens as Luthier reads them."""

        def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
            return [known[prompt[-1]["content"]] for prompt in prompts], None, {}

    with tempfile.TemporaryDirectory() as output:
        usual = peer.arguments_of(work, Path(output))
        settings = trl.GRPOConfig(
            **{**usual, "per_device_train_batch_size": GROUP},
            gradient_accumulation_steps=work.rows_per_step,
            gradient_checkpointing=False,  # on by default, and a third slower
            num_generations=GROUP,
            max_completion_length=work.max_new_tokens,
            temperature=1.0,
            beta=work.kl,
            shuffle_dataset=False,
            remove_unused_columns=False,
        )
        trainer = OfTokens(
            model=peer.load_base(work),
            reward_funcs=reward,
            args=settings,
            train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": text}]} for text in work.texts]),
            processing_class=peer.load_tokenizer(work),
            peft_config=peer.adapter_settings(work),
            callbacks=[measure],
        )
        peer.begin_at_adapter(work, trainer.model)
        trainer.train()
    versions = {"trl": trl.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
    clock.write(arguments.result, versions, answer_tokens=[step["completions/mean_length"] for step in measure.told])


if __name__ == "__main__":
    main()
