"""AdaLoRA: an update in the form of a singular value decomposition, whose ranks training shares out among the layers.

Zhang et al. 2023, https://arxiv.org/abs/2303.10512, equations 3–4 and 7–11, algorithm 1:

    W' = W + s B diag(e) A,   s = α / R₀ for ever, R₀ the rank that every layer starts with;   e = 0 at the start.

The loss gains γ · the mean over all A and B of ‖A Aᵀ − I‖ and ‖Bᵀ B − I‖ (Frobenius, not squared, as in the authors' code).
After each step the sensitivity |w · ∂L/∂w| of every trained number is smoothed (β₁), and so is its distance from that
(β₂); their product is the number's score, and a rank's score is that of its e plus the means of its row of A and its
column of B. From step `tinit` on, the budget of ranks falls from R₀ to the target along a cubic curve, and every `delta_t`
steps the e of all but the best ranks, of the whole model together, are set to zero. They may come back until `tfinal` steps
before the end, when the last choice is made; from then on it holds.

Where it differs from peft: exactly the budget is kept, also where scores are equal; R₀ is divided by as there (+ 1e-5);
the schedule is in shares of the run unless a recipe gives steps. The default shares are ours: the first tenth at full rank,
the last three tenths at the target. Ranks that were cut are left out of the file. A run that stops early at an earlier
best step keeps the ranks which it had there.

Merges: yes. Deep backward: yes, to the lowest adapted layer. Over 4 bits: yes. Identity at the start: exact, but for the
regulariser in the loss.
Trainable numbers: Σ R₀ (I + O + 1) over the adapted layers; the file holds those of the kept ranks.
Shapes: N tokens, I inputs, O outputs, R rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from luthier.errors import RecipeError
from luthier.methods.adapter import LayerMethod, linear_of, trainable
from luthier.methods.adapter_attachment import AdapterAttachment
from luthier.methods.bank import AdaptedLayer, AdaptedLinear, Branch, LowRankBranch
from luthier.methods.contract import Kin, StepDone, Traits
from luthier.methods.peft_files import PeftForm
from luthier.models.call import Run
from luthier.models.language_model import LanguageModel
from luthier.ops.lora import Update
from luthier.ops.spectrum import Factors

_START_DEVIATION = 0.02


@dataclass(frozen=True)
class AdaLoRAForm(PeftForm):
    """peft's ADALORA: a pruned file has fewer rows than `init_r`, and says which it keeps."""

    def settings_of(self, config: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
        """The ranks are those of the tensors."""
        found = {name.removesuffix(".lora_E"): len(e) for name, e in tensors.items() if name.endswith(".lora_E")}
        ranks = {layer: rank for layer, rank in found.items() if rank != config["init_r"]}
        return {**super().settings_of(config, tensors), "ranks": ranks}

    def config_of(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Each layer's kept ranks as truth values, of which only the number matters once the others are cut."""
        pattern = {
            f"{layer}.lora_E": [index < rank for index in range(settings["init_rank"])]
            for layer, rank in settings["ranks"].items()
        }
        return {
            **super().config_of(settings),
            "rank_pattern": pattern or None,
            "total_step": settings["num_steps"],
        }


@dataclass(frozen=True)
class Schedule:
    """How the budget of ranks falls: full up to step `start`, the target from `end` on, a choice `every` so many steps."""

    start: int
    end: int
    every: int

    def budget(self, step: int, full: int, target: int) -> int:
        """How many ranks may stay after a step."""
        if step <= self.start:
            return full
        if step >= self.end:
            return target
        left = 1 - (step - self.start) / (self.end - self.start)
        return int((full - target) * left**3 + target)

    def chooses(self, step: int) -> bool:
        """Whether ranks are chosen anew after a step."""
        return step == self.end or (self.start < step < self.end and step % self.every == 0)


class AdaLoRA(LayerMethod):
    """Low-rank updates whose ranks training shares out."""

    family: ClassVar[Kin] = "low-rank"
    paper: ClassVar[str] = "https://arxiv.org/abs/2303.10512"
    count: ClassVar[str] = "Σ R (I + O + 1) over the adapted layers, R the initial rank"
    traits: ClassVar[Traits] = Traits(merges=True, deep_backward=True, over_4bit=True, identity_at_start=True)
    default_lr: ClassVar[float] = 2e-3  # the paper: up to 1.2e-3 in runs of many thousand steps; e starts slowly
    form: ClassVar[PeftForm] = AdaLoRAForm(
        title="AdaLoRA",
        peft_type="ADALORA",
        fields={
            "init_rank": "init_r",
            "target_rank": "target_r",
            "alpha": "lora_alpha",
            "dropout": "lora_dropout",
            "ranks": "rank_pattern",
            "tinit": "tinit",
            "tfinal": "tfinal",
            "delta_t": "deltaT",
            "beta1": "beta1",
            "beta2": "beta2",
            "orth_weight": "orth_reg_weight",
        },
        required=("init_r", "target_r", "lora_alpha"),
        missing={"dropout": 0.0},
        endings=("lora_A", "lora_B", "lora_E"),
        allowed={"bias": (None, "none")},
        constants={"bias": "none"},
    )
    free_fields: ClassVar[frozenset[str]] = frozenset(
        {"dropout", "tinit", "tfinal", "delta_t", "beta1", "beta2", "orth_weight"}
    )

    kind: Literal["adalora"] = "adalora"
    init_rank: int = Field(12, ge=1, description="Rank of each update at the start.")
    target_rank: int = Field(8, ge=1, description="Mean rank of the updates at the end.")
    alpha: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Strength: the update is scaled by alpha / init_rank. Unset: twice init_rank.",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of the branch's inputs dropped in training.")
    ranks: dict[str, int] = Field(
        {}, description="Lower initial ranks for some layers, by their whole names; a pruned adapter has those it kept."
    )
    tinit: int | None = Field(None, ge=0, description="Steps before ranks are cut. Unset: a tenth of the run.")
    tfinal: int | None = Field(
        None, ge=0, description="Steps at the end, after the last choice of ranks. Unset: three tenths of the run."
    )
    delta_t: int | None = Field(None, ge=1, description="Steps between two choices. Unset: a hundredth of the run.")
    beta1: float = Field(0.85, gt=0, lt=1, description="How slowly the smoothed sensitivity follows.")
    beta2: float = Field(0.85, gt=0, lt=1, description="How slowly the smoothed uncertainty follows.")
    orth_weight: float = Field(0.5, ge=0, allow_inf_nan=False, description="Weight of the orthogonality in the loss.")

    @model_validator(mode="after")
    def _ranks_are_sound(self) -> Self:
        if self.target_rank > self.init_rank:
            raise ValueError(
                f"target_rank is {self.target_rank}, above init_rank, which is {self.init_rank}; lower it."
            )
        if not all(0 <= rank <= self.init_rank for rank in self.ranks.values()):
            raise ValueError(f"ranks holds a rank that is not between 0 and init_rank, which is {self.init_rank}.")
        return self

    def schedule(self, num_steps: int) -> Schedule:
        """The budget's course over a run of that many steps. Raises RecipeError if none is left to cut ranks in."""
        first = num_steps // 10 if self.tinit is None else self.tinit
        last = num_steps * 3 // 10 if self.tfinal is None else self.tfinal
        if first + last >= num_steps:
            raise RecipeError(
                f"Ranks stay as they are for {first} steps at the start and {last} at the end, "
                f"but the run has only {num_steps} steps.",
                "Lower method.tinit or method.tfinal, or leave them out.",
                field="method.tinit",
            )
        return Schedule(first, num_steps - last, self.delta_t or max(1, num_steps // 100))

    def place(self, model: LanguageModel, name: str, seed: int, fast: bool) -> AdapterAttachment:
        """A fresh branch at every place, and what shares the ranks out."""
        for layer in sorted(set(self.ranks) - set(self.places(model))):
            raise RecipeError(
                f"method.ranks names {layer!r}, which is no adapted layer.",
                "Give a layer's whole name, such as model.layers.0.self_attn.q_proj.",
                field="method.ranks",
            )
        return AdaLoRAAttachment(self, model, name, super().place(model, name, seed, fast).layers)

    def branch(self, layer: AdaptedLayer, generator: torch.Generator, fast: bool) -> Branch:
        """A and B small and random, e zero."""
        linear = linear_of(layer, self.kind)
        (outputs, inputs), rank = linear.shape, self.ranks.get(layer.name, self.init_rank)
        a_RI = trainable(torch.randn(rank, inputs, generator=generator) * _START_DEVIATION, linear.device)
        b_OR = trainable(torch.randn(outputs, rank, generator=generator) * _START_DEVIATION, linear.device)
        return AdaLoRABranch(a_RI, b_OR, self._alpha / (self.init_rank + 1e-5), self.dropout, fast)

    def file_settings(self) -> dict[str, Any]:
        """As for any adapter, with the strength settled."""
        return {**super().file_settings(), "alpha": self._alpha}

    @property
    def _alpha(self) -> float:
        return 2.0 * self.init_rank if self.alpha is None else self.alpha


class AdaLoRABranch(LowRankBranch):
    """A (R, I), B (O, R) and e (R, 1); `kept_R` says which ranks the last choice left."""

    def __init__(self, a_RI: nn.Parameter, b_OR: nn.Parameter, scale: float, drop: float, fast: bool) -> None:
        super().__init__()
        self.a_RI, self.b_OR = a_RI, b_OR
        self.e_R1 = trainable(torch.zeros(len(a_RI), 1), a_RI.device)
        self.kept_R = torch.ones(len(a_RI), dtype=torch.bool, device=a_RI.device)
        self.scale, self.drop, self.fast = scale, drop, fast

    @property
    def tensors(self) -> dict[str, nn.Parameter]:
        """A, B and e under peft's names."""
        return {"lora_A": self.a_RI, "lora_B": self.b_OR, "lora_E": self.e_R1}

    @property
    def draws(self) -> bool:
        """Whether there is dropout."""
        return self.drop > 0

    @property
    def rows(self) -> Tensor:
        """The ranks that do something or may come to (R,): those that were cut may have come back since."""
        return self.kept_R | (self.e_R1.detach()[:, 0] != 0)

    def low_rank(self, layer: AdaptedLinear, run: Run) -> Update:
        """s · drop(x) (B diag(e) A)ᵀ."""
        dropout = layer.dropout(self.drop, run)
        return Update(run.start, run.stop, self.e_R1 * self.a_RI, self.b_OR, self.scale, dropout)

    def orthogonality(self) -> tuple[Tensor, ...]:
        """‖A Aᵀ − I‖ and ‖Bᵀ B − I‖; nothing where no rank is left."""
        if len(self.a_RI) == 0:
            return ()
        identity_RR = torch.eye(len(self.a_RI), device=self.a_RI.device)
        grams = self.a_RI @ self.a_RI.t(), self.b_OR.t() @ self.b_OR
        return tuple(torch.linalg.matrix_norm(gram_RR - identity_RR) for gram_RR in grams)

    @torch.no_grad()
    def cut(self) -> None:
        """Set the e of all ranks that were not kept to zero."""
        self.e_R1.masked_fill_(~self.kept_R[:, None], 0)

    def file_tensors(self) -> dict[str, Tensor]:
        """A, B and e without the ranks that were cut."""
        rows = self.rows
        a_RI, b_OR, e_R1 = self.a_RI.detach(), self.b_OR.detach(), self.e_R1.detach()
        return {"lora_A": a_RI[rows], "lora_B": b_OR[:, rows], "lora_E": e_R1[rows]}

    def update(self, layer: AdaptedLinear) -> Factors:
        """s B diag(e) A."""
        return Factors(self.scale * self.b_OR.detach(), (self.e_R1 * self.a_RI).detach())

    def merged(self, weight_OI: Tensor, bias_O: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """W + s B diag(e) A."""
        return weight_OI + self.scale * (self.b_OR @ (self.e_R1 * self.a_RI)), bias_O


class AdaLoRAAttachment(AdapterAttachment):
    """AdaLoRA at work: it weighs every trained number after each step, and shares the ranks out."""

    def __init__(self, adalora: AdaLoRA, model: LanguageModel, name: str, layers: Mapping[str, AdaptedLayer]) -> None:
        super().__init__(adalora, model, name, layers)
        self.adalora = adalora
        self.sensitivity = {name: torch.zeros_like(tensor.data) for name, tensor in self.trainables.items()}
        self.uncertainty = {name: torch.zeros_like(tensor.data) for name, tensor in self.trainables.items()}

    @property
    def ada_branches(self) -> dict[str, AdaLoRABranch]:
        """The branches, by layer."""
        return {target: branch for target, branch in self.branches.items() if isinstance(branch, AdaLoRABranch)}

    def extra_loss(self) -> Tensor | None:
        """γ times the mean distance of all A Aᵀ and Bᵀ B from the identity."""
        distances = [distance for branch in self.ada_branches.values() for distance in branch.orthogonality()]
        if self.adalora.orth_weight == 0 or not distances:
            return None
        return self.adalora.orth_weight * torch.stack(distances).mean()

    @torch.no_grad()
    def after_step(self, done: StepDone) -> bool:
        """Weigh the numbers, choose the ranks when that is due, and hold the last choice to the end."""
        self.extra = {**self.extra, "total_step": done.num_steps}
        schedule = self.adalora.schedule(done.num_steps)
        if done.number < schedule.end:
            self._weigh(done.gradients)
        if schedule.chooses(done.number):
            full = sum(len(branch.kept_R) for branch in self.ada_branches.values())
            target = min(full, self.adalora.target_rank * len(self.branches))
            self._choose(schedule.budget(done.number, full, target))
        if schedule.chooses(done.number) or done.number > schedule.end:
            for branch in self.ada_branches.values():
                branch.cut()
        return False

    def _weigh(self, gradients: Mapping[str, Tensor]) -> None:
        """Smooth each number's sensitivity, and its distance from the smoothed one."""
        for name, tensor in self.trainables.items():
            if name not in gradients:
                continue
            now, smoothed = (tensor * gradients[name]).abs(), self.sensitivity[name]
            smoothed.lerp_(now, 1 - self.adalora.beta1)
            self.uncertainty[name].lerp_((now - smoothed).abs(), 1 - self.adalora.beta2)

    def _choose(self, budget: int) -> None:
        """Keep the ranks with the highest scores, of all layers together."""
        branches = self.ada_branches
        scores = torch.cat([self._scores(target) for target in branches])
        kept = torch.zeros_like(scores, dtype=torch.bool)
        kept[scores.argsort(descending=True, stable=True)[:budget]] = True
        sizes = [len(branch.kept_R) for branch in branches.values()]
        for branch, kept_R in zip(branches.values(), kept.split(sizes), strict=True):
            branch.kept_R.copy_(kept_R)

    def _scores(self, target: str) -> Tensor:
        """A layer's scores by rank (R,)."""

        def score(ending: str) -> Tensor:
            return self.sensitivity[f"{target}.{ending}"] * self.uncertainty[f"{target}.{ending}"]

        return score("lora_E")[:, 0] + score("lora_A").mean(dim=1) + score("lora_B").mean(dim=0)

    def state(self) -> dict[str, Tensor]:
        """The smoothed sensitivities and uncertainties, and the last choice."""
        remembered = {**self._remembered(), "total_step": torch.tensor(int(self.extra.get("total_step", 0)))}
        return {name: tensor.clone().cpu() for name, tensor in remembered.items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` gave."""
        for name, tensor in self._remembered().items():
            tensor.copy_(state[name])
        self.extra = {**self.extra, "total_step": int(state["total_step"])}

    def _remembered(self) -> dict[str, Tensor]:
        return {
            **{f"sensitivity.{name}": tensor for name, tensor in self.sensitivity.items()},
            **{f"uncertainty.{name}": tensor for name, tensor in self.uncertainty.items()},
            **{f"kept.{target}": branch.kept_R for target, branch in self.ada_branches.items()},
        }

    def file_settings(self) -> dict[str, Any]:
        """As for any adapter, with the ranks that are left and the schedule in steps."""
        enough = 2 * (self.adalora.tinit or 0) + 2 * (self.adalora.tfinal or 0) + 1
        num_steps = int(self.extra.get("total_step") or 0) or enough
        schedule = self.adalora.schedule(num_steps)
        ranks = {target: int(branch.rows.sum()) for target, branch in self.ada_branches.items()}
        return {
            **super().file_settings(),
            "ranks": {target: rank for target, rank in ranks.items() if rank != self.adalora.init_rank},
            "tinit": schedule.start,
            "tfinal": num_steps - schedule.end,
            "delta_t": schedule.every,
            "num_steps": num_steps,
        }
