"""Distillation: a student learns to say of each token what a teacher says of it.

With p the teacher's distribution over the vocabulary at a target, q the student's, both softmax(z / τ), and y the token itself,

    loss = Σ_n w_n ( α · − log q₁(y_n) + (1 − α) · τ² D(p_n, q_n) ) / Σ_n w_n

over the whole optimizer step, q₁ being the student's at τ = 1. D is one of

    forward   KL(p ‖ q), which spreads the student over all that the teacher may say
              Hinton et al. 2015, https://arxiv.org/abs/1503.02531, section 2, where τ² comes from too
    reverse   KL(q ‖ p), which has it say nothing that the teacher would not
              Gu et al. 2023 (MiniLLM), https://arxiv.org/abs/2306.08543, equation 1, here on the rows' own answers
    jsd       β KL(p ‖ m) + (1 − β) KL(q ‖ m),  m = β p + (1 − β) q
              Agarwal et al. 2023 (GKD), https://arxiv.org/abs/2306.13649, equation 1, with λ = 0

The teacher is asked at each step for the very rows of the step. With `top_k` it is asked once for all rows, before step 1; its
K likeliest words at each target are kept in the run's folder with how likely all others are together, which then count as
one word. Then it is never loaded again. With `stored` they stay in a folder of their own, from which other students of the same
rows learn without asking again. Held-out rows are measured by the same loss; `luthier evaluate` asks no teacher and gives
the plain loss.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor

from luthier.models.outputs import Outputs
from luthier.models.settings import ModelSettings
from luthier.objectives.contract import Companion, Kept, Objective
from luthier.objectives.likelihood import nll_sum
from luthier.objectives.sft import SFT, written
from luthier.ops.imitation import Direction, KnownWords, Measure, distance_recomputed, known_distance_recomputed
from luthier.types import Example, ModelKind, Origin, Rendered, by_word, fault_at

TEACHER = "teacher"


class Distillation(Objective):
    """Learn to say what a larger model says."""

    kinds: ClassVar[tuple[ModelKind, ...]] = ("decoder", "encoder-decoder")
    is_likelihood: ClassVar[bool] = False
    weighs: ClassVar[bool] = True

    kind: Literal["distillation"] = "distillation"
    teacher: Annotated[ModelSettings, BeforeValidator(by_word("name"), json_schema_input_type=str | ModelSettings)] = (
        Field(
            description="The model to learn from: as in model, or the folder of a finished run. It must have the same tokens.",
        )
    )
    alpha: float = Field(
        0.5, ge=0.0, le=1.0, description="Share of the plain loss of the rows' own tokens; the rest is the distance."
    )
    temperature: float = Field(
        1.0, gt=0.0, description="What both models' logits are divided by before the distance is taken."
    )
    direction: Direction = Field(
        "forward",
        description="Which distance: forward KL(teacher ‖ student), reverse KL(student ‖ teacher), or jsd between the two.",
    )
    beta: float | None = Field(
        None,
        gt=0.0,
        lt=1.0,
        description="With direction jsd: the teacher's share of the mixture that both are compared with; unset: 0.5.",
    )
    top_k: int | None = Field(
        None,
        ge=1,
        description="Ask the teacher once, before step 1, and keep so many of its likeliest words at each target; unset: ask it at each step.",
    )

    stored: str | None = Field(
        None,
        min_length=1,
        description="With top_k: a folder where what the teacher said stays, for further runs on the same rows; unset: in the run's folder, until it ends.",
    )

    @model_validator(mode="after")
    def _teacher_is_trained(self) -> Self:
        if self.teacher.config is not None:
            raise fault_at(
                "objective.teacher.config", "A teacher at random weights teaches nothing; name a trained model."
            )
        if self.teacher.add_tokens:
            raise fault_at(
                "objective.teacher.add_tokens",
                "Rows of new tokens are untrained, and a teacher does not train; leave add_tokens out.",
            )
        if self.stored is not None and self.top_k is None:
            raise fault_at(
                "objective.stored", "What is asked at each step is not stored; set top_k, or leave stored out."
            )
        if self.beta is not None and self.direction != "jsd":
            raise fault_at("objective.beta", "beta is for direction jsd alone; set that, or leave beta out.")
        return self

    def example(self, rendered: Rendered, document: int, origin: Origin) -> Example:
        """One document, as sft learns it."""
        return written(rendered, document, origin)

    @property
    def measure(self) -> Measure:
        """The distance to the teacher."""
        return Measure(self.direction, self.temperature, 0.5 if self.beta is None else self.beta)

    @property
    def companions(self) -> tuple[Companion, ...]:
        """The teacher."""
        kept = None if self.top_k is None else Kept(self.top_k, self.temperature, self.stored)
        return (Companion(TEACHER, self.teacher, "objective.teacher", kept),)

    @property
    def alone(self) -> Objective:
        """The plain loss."""
        return SFT()

    def with_paths(self, found: Callable[[str], str]) -> Self:
        """With the teacher's path as `found` gives it, and that of what is stored, which need not be there yet, from the root."""
        teacher = self.teacher.model_copy(update={"name": found(self.teacher.name)})
        stored = None if self.stored is None else str(Path(found(self.stored)).expanduser().absolute())
        return self.model_copy(update={"teacher": teacher, "stored": stored})

    def loss_sum(self, outputs: Outputs) -> Tensor:
        """α of the plain loss, and the rest of the distance to the teacher, weighted and summed."""
        weight_N = outputs.targets.weight_N
        far = (1 - self.alpha) * self.temperature**2
        distance = far * (self.distances(outputs) * weight_N).sum() if far else weight_N.new_zeros(())
        return distance + self.alpha * nll_sum(outputs.logprob_N, weight_N) if self.alpha else distance

    def distances(self, outputs: Outputs) -> Tensor:
        """D at each target (nats, fp32), shape (N,)."""
        teacher, student_ND, head = outputs.beside[TEACHER], outputs.hidden_ND, outputs.head.logits
        if isinstance(teacher, KnownWords):
            return known_distance_recomputed(student_ND, teacher, head, self.measure)
        assert isinstance(teacher, Outputs), "a teacher is asked for its words"
        return distance_recomputed(student_ND, teacher.hidden_ND, head, teacher.head.logits, self.measure)
