"""One contestant: TRL's `SFTTrainer` with `peft`, in a process of its own."""

from __future__ import annotations

import tempfile
from pathlib import Path

from bench.side import begin


def main() -> None:
    """Do the work once and write what was measured."""
    arguments = begin("TRL SFTTrainer + peft", own_allocator=False)
    # only now, so that the allocator is set before torch takes its first memory
    import peft
    import transformers
    import trl

    from bench import peer
    from bench.clock import StepClock
    from bench.work import read_work

    work = read_work(arguments.work)
    clock = StepClock()
    with tempfile.TemporaryDirectory() as output:
        # The rows have token ids and labels already, so nothing is left to prepare; loss and collator are TRL's own.
        settings = trl.SFTConfig(
            **peer.arguments_of(work, Path(output)),
            gradient_checkpointing=False,  # on by default, and a third slower
            max_length=None,
            packing=False,
            dataset_kwargs={"skip_prepare_dataset": True},
        )
        trainer = trl.SFTTrainer(
            model=peer.load_policy(work),
            args=settings,
            train_dataset=peer.rows_of(work),
            processing_class=peer.load_tokenizer(work),
            callbacks=[peer.Measure(clock)],
        )
        trainer.train()
    versions = {"trl": trl.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
    clock.write(arguments.result, versions)


if __name__ == "__main__":
    main()
