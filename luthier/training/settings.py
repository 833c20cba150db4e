"""What a recipe says about the training loop."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from luthier.training.optimizers import AdamW, AnyOptimizer
from luthier.types import Settings, by_word, fault_at


class Schedule(Settings):
    """How the learning rate moves: it rises in a line to the peak, then falls (or stays)."""

    kind: Literal["cosine", "linear", "constant"] = Field("cosine", description="Shape of the fall after warm-up.")
    warmup_fraction: float = Field(0.05, ge=0, lt=1, description="Share of the steps over which the rate rises.")
    warmup_steps: int | None = Field(None, ge=0, description="The same in steps; goes before warmup_fraction.")
    final_fraction: float = Field(0.0, ge=0, le=1, description="The rate at the end, as a share of the peak.")


class EarlyStopping(Settings):
    """When to stop for lack of progress on the held-out rows."""

    patience: int = Field(3, ge=1, description="Stop after so many evaluations without a better held-out loss.")
    min_delta: float = Field(0.0, ge=0, description="A loss counts as better only if lower by more than this (nats).")


MetricName = Literal[
    "exact-match",
    "token-f1",
    "rouge-l",
    "accuracy",
    "rouge-1",
    "rouge-2",
    "json-valid",
    "json-fields",
    "number",
    "final-answer",
    "bleu",
    "chrf",
    "macro-f1",
]
"""The metrics of answers by name; `luthier.evaluation.named_metrics` has what each is."""


class GeneratedMetrics(Settings):
    """Metrics of what the model answers to held-out rows, greedily, whenever their loss is measured."""

    metrics: tuple[MetricName, ...] = Field(
        ("accuracy",), description="Which metrics; docs/evaluation.md says what each is."
    )
    graders: tuple[str, ...] = Field(
        (),
        description="Files with measures of your own: graders (YAML or JSON, docs/grading.md), or Python that defines metric(row, answer).",
    )
    rows: int = Field(32, ge=1, description="How many of the held-out rows are answered: the first ones.")
    max_new_tokens: int = Field(128, ge=1, description="Most tokens of one answer.")

    @model_validator(mode="after")
    def _measures(self) -> Self:
        if not self.metrics and not self.graders:
            raise fault_at("metrics", "names no metric, and there are no graders; name one, such as accuracy.")
        return self


class FastPaths(Settings):
    """Switches between each fast operation and its plain reference; both compute the same."""

    attention: bool = Field(
        True, description="Attention document by document; off: one dense mask over the packed row."
    )
    head: bool = Field(True, description="Loss head at learned positions in chunks; off: all logits at once.")
    lora: bool = Field(True, description="LoRA as one operation that keeps x and xA; off: plain autograd.")
    gated_mlp: bool = Field(
        True, description="SwiGLU-type products that keep only their inputs; off: as in transformers."
    )
    norm: bool = Field(True, description="RMSNorm that keeps only its input; off: as in transformers.")
    linear: bool = Field(
        True, description="Frozen linear layers by the faster of torch's products on this processor; off: torch's own."
    )
    prefix: bool = Field(
        True,
        description="A beginning that the rows of a micro-batch have in common is computed once (on a CPU, without dropout), and so is the prompt of answers that are compared; off: in every row, before every answer.",
    )


class TrainingSettings(Settings):
    """The loop: how long, in which batches, at which rate, and what is written along the way."""

    epochs: float = Field(3.0, gt=0, description="Passes over the training rows; ignored when steps is set.")
    steps: int | None = Field(None, ge=1, description="Optimizer steps; goes before epochs.")
    rows_per_step: int | None = Field(
        None, ge=1, description="Rows in one optimizer step (8, unless tokens_per_step is set)."
    )
    tokens_per_step: int | None = Field(
        None, ge=1, description="Instead of rows: about so many real tokens in one optimizer step."
    )
    tokens_per_micro_batch: int = Field(
        1024,
        ge=8,
        description="Most tokens computed at once by one worker; bounds memory. data.max_length may not exceed it.",
    )
    memory_limit_gb: float | None = Field(
        None,
        gt=0,
        description="Most memory (10^9 bytes) that training may hold on a CPU: a step that passes it is computed anew in micro-batches half as large, with the same result. Unset: what the system gives.",
    )
    peak_lr: float | None = Field(None, gt=0, description="Highest learning rate; unset, the method's own default.")
    schedule: Schedule = Schedule()
    optimizer: Annotated[AnyOptimizer, BeforeValidator(by_word("kind"), json_schema_input_type=str | AnyOptimizer)] = (
        Field(AdamW(), description="How gradients become steps, and what that remembers; a name alone is its kind.")
    )
    clip_norm: float | None = Field(
        1.0, gt=0, description="Longest gradient vector before it is scaled down; null: never."
    )
    gradient_checkpointing: bool = Field(
        False, description="Recompute each layer in the backward pass: less memory, about a third more time."
    )
    update_in_backward: bool = Field(
        False,
        description="Full tuning: move each tensor within the backward pass and let go of its gradient, so that only one is held at a time. Needs clip_norm null, workers 1, no memory_limit_gb, an objective that learns from rows, and a step that is one micro-batch.",
    )
    autocast: Literal["auto", "none", "bf16"] = Field(
        "auto",
        description="Compute fp32 weights in bf16 where it pays: 'auto' does so on GPUs only.",
    )
    workers: Literal["auto"] | int = Field(
        "auto",
        description="Threads that each compute micro-batches; 'auto' is one for each CPU core (at most 8), and 1 on a GPU.",
    )
    evaluate_every: int | None = Field(
        None, ge=1, description="Steps between evaluations on held-out rows; unset: five times a run."
    )
    evaluate_generated: GeneratedMetrics | None = Field(
        None, description="Whenever held-out rows are evaluated, also answer some of them and measure the answers."
    )
    early_stopping: EarlyStopping | None = Field(None, description="Stop when the held-out loss no longer falls.")
    checkpoint_every: int | None = Field(None, ge=1, description="Steps between checkpoints; unset: ten times a run.")
    keep_last: int = Field(2, ge=1, description="Checkpoints kept, beside the best one.")
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = Field(
        (),
        description="Where metrics go beside metrics.jsonl.",
    )
    trunk_cache_gb: float = Field(
        8.0,
        ge=0,
        description="Most disk for what frozen lower layers give for each row, so that later epochs begin above them; 0: keep nothing.",
    )
    trunk_cache_dtype: Literal["fp32", "bf16"] = Field(
        "fp32", description="Number format of what is kept; bf16 takes half the disk and rounds."
    )
    fast: FastPaths = FastPaths()

    @model_validator(mode="after")
    def _one_batch_size(self) -> Self:
        if self.rows_per_step is not None and self.tokens_per_step is not None:
            raise ValueError("rows_per_step and tokens_per_step are both set; keep one of them.")
        if self.update_in_backward and self.clip_norm is not None:
            raise ValueError(
                "update_in_backward never sees the whole gradient, so it cannot be clipped; set clip_norm to null."
            )
        if self.update_in_backward and self.workers not in ("auto", 1):
            raise ValueError("update_in_backward computes a step in one micro-batch; set workers to 1.")
        if self.update_in_backward and self.memory_limit_gb is not None:
            raise fault_at(
                "training.memory_limit_gb",
                "A step beyond the limit is computed anew in smaller micro-batches, but with update_in_backward it is one "
                "micro-batch; leave memory_limit_gb out, or take update_in_backward out.",
            )
        if not isinstance(self.workers, str) and self.workers < 1:
            raise ValueError(f"workers is {self.workers}; give 1 or more, or 'auto'.")
        return self
