"""One contestant of `bench.dpo`: TRL's `DPOTrainer` with `peft`, in a process of its own.

The adapter is the trainer's own, fresh, so that its reference is the bare base, as Luthier's is; then it gets the initial numbers.
Pairs come as token ids, and a step's are computed in micro-batches: all at once would take more memory than most machines have.
"""

from __future__ import annotations

import tempfile

from bench.side import begin

PAIRS_AT_ONCE = 4


def main() -> None:
    """Do the work once and write what was measured."""
    arguments = begin("TRL DPOTrainer + peft", own_allocator=False)
    # only now, so that the allocator is set before torch takes its first memory
    from dataclasses import asdict
    from pathlib import Path
    from typing import Any

    import peft
    import transformers
    import trl
    from datasets import Dataset

    from bench import peer
    from bench.clock import StepClock
    from bench.pairs import BETA, read_pairs

    class OfTokens(trl.DPOTrainer):
        """The trainer over pairs that are token ids already."""

        def _prepare_dataset(self, dataset: Dataset, *arguments: Any, **named: Any) -> Dataset:
            return dataset

    work = read_pairs(arguments.work)
    clock = StepClock()
    with tempfile.TemporaryDirectory() as output:
        usual = peer.arguments_of(work, Path(output))
        settings = trl.DPOConfig(
            **{**usual, "per_device_train_batch_size": PAIRS_AT_ONCE},
            gradient_accumulation_steps=work.rows_per_step // PAIRS_AT_ONCE,
            gradient_checkpointing=False,  # on by default, and a third slower
            beta=BETA,
            max_length=None,
        )
        trainer = OfTokens(
            model=peer.load_base(work),
            args=settings,
            train_dataset=Dataset.from_list([asdict(pair) for pair in work.pairs]),
            processing_class=peer.load_tokenizer(work),
            peft_config=peer.adapter_settings(work),
            callbacks=[peer.Measure(clock)],
        )
        peer.begin_at_adapter(work, trainer.model)
        trainer.train()
    versions = {"trl": trl.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
    clock.write(arguments.result, versions)


if __name__ == "__main__":
    main()
