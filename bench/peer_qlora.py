"""One contestant: QLoRA by TRL's `SFTTrainer`, `peft` and `bitsandbytes`, in a process of its own."""

from __future__ import annotations

from bench.side import begin


def main() -> None:
    """Do the work once and write what was measured."""
    arguments = begin("TRL SFTTrainer + peft + bitsandbytes", own_allocator=False)
    # only now, so that the allocator is set before torch takes its first memory
    import bitsandbytes
    import peft
    import torch
    import transformers
    import trl

    from bench import peer
    from bench.clock import StepClock
    from bench.work import read_work

    work = read_work(arguments.work)
    clock = StepClock()
    quantization = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(
        work.model, dtype=torch.float32, quantization_config=quantization, device_map="cpu"
    )
    policy = peft.PeftModel.from_pretrained(model, work.adapter, is_trainable=True)
    peer.train_by_trl(work, policy, clock)
    versions = {"trl": trl.__version__, "peft": peft.__version__, "bitsandbytes": bitsandbytes.__version__}
    clock.write(arguments.result, versions)


if __name__ == "__main__":
    main()
