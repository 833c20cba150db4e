"""What the two peers share: the model with the initial adapter, the fixed rows, and the measuring callback.

Imported only inside a peer's own process.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from bench.clock import StepClock
from bench.work import Job, Work


def load_base(work: Job) -> PreTrainedModel:
    """The base model in fp32."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(work.model, dtype=torch.float32)
    return model


def load_policy(work: Job) -> PeftModel:
    """The base model with the initial adapter, ready to train."""
    return PeftModel.from_pretrained(load_base(work), work.adapter, is_trainable=True)


def adapter_settings(work: Job) -> LoraConfig:
    """How the initial adapter is shaped, for a trainer that makes its own."""
    settings = LoraConfig.from_pretrained(work.adapter)
    settings.inference_mode = False
    return settings


def begin_at_adapter(work: Job, policy: torch.nn.Module) -> None:
    """Give a trainer's own fresh adapter the numbers of the initial one: its reference stays the bare base."""
    tensors = load_file(Path(work.adapter) / "adapter_model.safetensors")
    loaded = set_peft_model_state_dict(policy, tensors)
    assert not loaded.unexpected_keys, "the adapter has the peer's own names"


def load_tokenizer(work: Job) -> PreTrainedTokenizerBase:
    """The model's tokenizer; every row is tokenized already, so it serves padding only."""
    tokenizer = AutoTokenizer.from_pretrained(work.model)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token_id = work.pad_id
    return tokenizer


def rows_of(work: Work) -> Dataset:
    """The rows in the order of training."""
    return Dataset.from_list([{"input_ids": row.input_ids, "labels": row.labels} for row in work.rows])


def arguments_of(work: Job, output: Path) -> dict[str, Any]:
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
    """Ends a lap when a step's loss is logged, which a trainer does right after the step. told: what was logged then."""

    def __init__(self, clock: StepClock) -> None:
        self.clock = clock
        self.told: list[dict[str, float]] = []

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
            self.told.append(dict(logs))


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
