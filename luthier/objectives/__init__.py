"""Training objectives: one file each, and their list."""

from luthier.objectives.classification import Classification
from luthier.objectives.clm import CLM
from luthier.objectives.contract import Companion, JointObjective, Objective
from luthier.objectives.cpo import CPO
from luthier.objectives.denoising import Denoising
from luthier.objectives.distillation import Distillation
from luthier.objectives.dpo import DPO
from luthier.objectives.embedding import Embedding
from luthier.objectives.fim import FIM
from luthier.objectives.kto import KTO
from luthier.objectives.mlm import MLM
from luthier.objectives.multiple_choice import MultipleChoice
from luthier.objectives.orpo import ORPO
from luthier.objectives.prefix_lm import PrefixLM
from luthier.objectives.regression import Regression
from luthier.objectives.reward import Reward
from luthier.objectives.sft import SFT
from luthier.objectives.simpo import SimPO
from luthier.objectives.span_corruption import SpanCorruption
from luthier.objectives.token_classification import TokenClassification
from luthier.objectives.ul2 import UL2

OBJECTIVES: tuple[type[Objective], ...] = (
    SFT,
    CLM,
    MLM,
    SpanCorruption,
    Denoising,
    UL2,
    PrefixLM,
    FIM,
    Classification,
    Regression,
    TokenClassification,
    MultipleChoice,
    Embedding,
    Distillation,
    DPO,
    KTO,
    ORPO,
    SimPO,
    CPO,
    Reward,
)


def kind_of(objective: type[Objective]) -> str:
    """The kind that names an objective in a recipe."""
    return str(objective.model_fields["kind"].default)


__all__ = [
    "CLM",
    "CPO",
    "DPO",
    "FIM",
    "KTO",
    "MLM",
    "OBJECTIVES",
    "ORPO",
    "SFT",
    "UL2",
    "Classification",
    "Companion",
    "Denoising",
    "Distillation",
    "Embedding",
    "JointObjective",
    "MultipleChoice",
    "Objective",
    "PrefixLM",
    "Regression",
    "Reward",
    "SimPO",
    "SpanCorruption",
    "TokenClassification",
    "kind_of",
]
