"""One contestant: `transformers.Trainer` with `peft`, in a process of its own."""

from __future__ import annotations

import tempfile
from pathlib import Path

from bench.side import begin


def main() -> None:
    """Do the work once and write what was measured."""
    arguments = begin("transformers.Trainer + peft", own_allocator=False)
    # only now, so that the allocator is set before torch takes its first memory
    import peft
    import transformers

    from bench import peer
    from bench.clock import StepClock
    from bench.work import NOT_LEARNED, read_work

    work = read_work(arguments.work)
    tokenizer = peer.load_tokenizer(work)
    clock = StepClock()
    with tempfile.TemporaryDirectory() as output:
        trainer = transformers.Trainer(
            model=peer.load_policy(work),
            args=transformers.TrainingArguments(**peer.arguments_of(work, Path(output))),
            train_dataset=peer.rows_of(work),
            data_collator=transformers.DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=NOT_LEARNED),
            callbacks=[peer.Measure(clock)],
        )
        trainer.train()
    versions = {"transformers": transformers.__version__, "peft": peft.__version__}
    clock.write(arguments.result, versions)


if __name__ == "__main__":
    main()
