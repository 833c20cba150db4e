"""One contestant: TRL's `SFTTrainer` with `peft`, in a process of its own."""

from __future__ import annotations

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
    peer.train_by_trl(work, peer.load_policy(work), clock)
    versions = {"trl": trl.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
    clock.write(arguments.result, versions)


if __name__ == "__main__":
    main()
