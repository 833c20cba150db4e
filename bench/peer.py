"""What the two peers share: the model with the initial adapter, the fixed rows, and the measuring callback.

Imported only inside a peer's own process.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from bench.clock import StepClock
from bench.work import Work


def load_policy(work: Work) -> PeftModel:
    """The base model in fp32 with the initial adapter, ready to train."""
    model = AutoModelForCausalLM.from_pretrained(work.model, dtype=torch.float32)
    return PeftModel.from_pretrained(model, work.adapter, is_trainable=True)


def load_tokenizer(work: Work) -> PreTrainedTokenizerBase:
    """The model's tokenizer; every row is tokenized already, so it serves padding only."""
    tokenizer = AutoTokenizer.from_pretrained(work.model)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token_id = work.pad_id
    return tokenizer


def rows_of(work: Work) -> Dataset:
    """The rows in the order of training."""
    return Dataset.from_list([{"input_ids": row.input_ids, "labels": row.labels} for row in work.rows])


def arguments_of(work: Work, output: Path) -> dict[str, Any]:
    """Training arguments that make a peer do this work; what is not named here keeps the peer's default."""
    return {
        "output_dir": str(output),
        "per_device_train_batch_size": work.rows_per_step,
        "num_train_epochs": 1,
        "train_sampling_strategy": "sequential",
        "learning_rate": work.peak_lr,
        "lr_scheduler_type": "linear",
        "warmup_steps": 0,
        "max_grad_norm": work.clip_norm,
        "bf16": False,
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


class Measure(TrainerCallback):
    """Ends a lap when a step's loss is logged, which a trainer does right after the step."""

    def __init__(self, clock: StepClock) -> None:
        self.clock = clock

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        """The first step begins."""
        self.clock.begin()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **rest: Any,
    ) -> None:
        """A step's loss is there; the summary at the end has none."""
        if logs is not None and "loss" in logs:
            self.clock.step_ended(float(logs["loss"]))


def train_by_trl(work: Work, policy: PeftModel, clock: StepClock) -> None:
    """Do the work with TRL's `SFTTrainer`; loss and collator are its own."""
    import trl

    with tempfile.TemporaryDirectory() as output:
        # The rows have token ids and labels already, so nothing is left to prepare.
        settings = trl.SFTConfig(
            **arguments_of(work, Path(output)),
            gradient_checkpointing=False,  # on by default, and a third slower
            max_length=None,
            packing=False,
            dataset_kwargs={"skip_prepare_dataset": True},
        )
        trainer = trl.SFTTrainer(
            model=policy,
            args=settings,
            train_dataset=rows_of(work),
            processing_class=load_tokenizer(work),
            callbacks=[Measure(clock)],
        )
        trainer.train()
