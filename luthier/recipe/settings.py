"""The recipe: one typed model that names one choice from each folder below."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BeforeValidator, Field, model_validator

from luthier.data.formats import gives, objectives_for
from luthier.data.settings import DataSettings
from luthier.methods import LoRA
from luthier.models.settings import ModelSettings
from luthier.objectives import SFT
from luthier.quantization.settings import QuantizationSettings
from luthier.recipe.known_methods import AnyMethod
from luthier.recipe.known_objectives import AnyObjective
from luthier.rlhf import RolloutObjective
from luthier.training.settings import TrainingSettings
from luthier.types import Settings, by_word, fault_at


class Provenance(Settings):
    """What a run was made from; Luthier writes it into recipe.resolved.yaml, and resume compares it."""

    luthier: str = Field(description="Version of Luthier.")
    torch: str = Field(description="Version of torch.")
    transformers: str = Field(description="Version of transformers.")
    model_sha256: str = Field(description="Hash of the base model's files.")
    data_sha256: str = Field(description="Hash of the training and held-out rows.")
    companions: dict[str, str] = Field(
        {}, description="Hash of each other model that the objective hears, such as a teacher, by its role."
    )


class Recipe(Settings):
    """What one run does: a base model, data, a method, an objective, and how long to train."""

    model: Annotated[ModelSettings, BeforeValidator(by_word("name"), json_schema_input_type=str | ModelSettings)] = (
        Field(
            description="The base model: its name alone, or the settings below.",
        )
    )
    data: DataSettings = Field(description="The rows to learn from, and what of them is learned.")
    method: AnyMethod = Field(LoRA(), description="What is trained: small added tensors, or the model's own weights.")
    objective: AnyObjective = Field(SFT(), description="The loss that training lowers.")
    training: TrainingSettings = Field(TrainingSettings(), description="The loop.")
    quantization: QuantizationSettings | None = Field(
        None, description="Hold the frozen base in few bits; null leaves it as it is."
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Decides the order of rows and every random draw.")
    provenance: Provenance | None = Field(
        None, description="Written by Luthier into recipe.resolved.yaml; leave it out of your own."
    )

    @model_validator(mode="after")
    def _parts_go_together(self) -> Self:
        if self.data.max_length > self.training.tokens_per_micro_batch:
            raise fault_at(
                "data.max_length",
                f"A row may have {self.data.max_length} tokens, but one micro-batch holds only "
                f"{self.training.tokens_per_micro_batch}; lower data.max_length or raise training.tokens_per_micro_batch.",
            )
        if self.training.early_stopping is not None and self.data.validation == "none":
            raise fault_at(
                "training.early_stopping",
                "Early stopping watches held-out rows, but data.validation is none; "
                "set data.validation to auto or to a file, or take early_stopping out.",
            )
        if self.training.evaluate_generated is not None:
            self._check_answers()
        if not gives(self.data.format, self.objective.takes, self.data.wishes):
            form = self.data.format if self.data.template is None else "template"
            kinds = " or ".join(objectives_for(self.data.format, self.data.wishes))
            raise fault_at(
                "data.format" if self.data.template is None else "data.template",
                f"Rows of the form {form} are not what objective.kind {self.objective.kind} learns from; "
                f"change {'data.format' if self.data.template is None else 'data.template'}"
                f"{f', or set objective.kind to {kinds}' if kinds else ''}.",
            )
        if self.training.update_in_backward:
            self._check_update_in_backward()
        if self.model.config is not None and self.method.kind != "full":
            raise fault_at(
                "method.kind",
                f"The model begins at random weights, so there is nothing for {self.method.kind} to adapt; "
                "set method: {kind: full}.",
            )
        if self.model.add_tokens and self.method.without_new_tokens is not None:
            raise fault_at(
                "method.kind",
                f"The rows of new tokens cannot train with {self.method.kind}: {self.method.without_new_tokens}; set method.kind "
                "to lora or full, or leave model.add_tokens out.",
            )
        if self.method.needs_quantization and self.quantization is None:
            raise fault_at(
                "quantization",
                f"{self.method.kind} begins at what a base loses as it is quantized; add quantization: {{kind: nf4}} over the "
                "unquantized model, or set method.kind to lora.",
            )
        if self.quantization is not None and not self.method.traits.over_4bit:
            raise fault_at(
                "quantization",
                f"{self.method.kind} trains the base's own weights, which quantized ones cannot be; "
                "leave quantization out, or set method.kind to lora.",
            )
        for setting in self.method.lacking(self.objective.takes == "labels"):
            raise fault_at(
                f"method.{setting}",
                f"method.{setting} is missing, which {self.method.kind} needs with objective.kind {self.objective.kind}; add it.",
            )
        return self

    def _check_answers(self) -> None:
        """Raise where there are no answers to measure while training."""
        if self.objective.takes != "text" or self.objective.splits:
            raise fault_at(
                "training.evaluate_generated",
                f"objective.kind {self.objective.kind} does not learn to answer in text; take training.evaluate_generated out.",
            )
        if self.data.validation == "none":
            raise fault_at(
                "training.evaluate_generated",
                "It has held-out rows answered, but data.validation is none; set data.validation to auto or to a file, "
                "or take training.evaluate_generated out.",
            )

    def _check_update_in_backward(self) -> None:
        """Raise where tensors cannot move within the backward pass, or need not."""
        if not self.method.tunes_base:
            raise fault_at(
                "training.update_in_backward",
                f"What {self.method.kind} trains has gradients too small to be worth it; take update_in_backward out.",
            )
        if isinstance(self.objective, RolloutObjective):
            raise fault_at(
                "training.update_in_backward",
                f"objective.kind {self.objective.kind} learns from answers that are drawn, of which a step may need several "
                "micro-batches, whose gradients must be held and added up; take update_in_backward out.",
            )
