"""The graders that stand alone: what `multi` may be made of."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from luthier.evaluation.grading.code import Code
from luthier.evaluation.grading.instructions import Instructions
from luthier.evaluation.grading.json_form import JsonFields, JsonForm
from luthier.evaluation.grading.judged_by_model import LabelModel, ScoreModel
from luthier.evaluation.grading.length import Length
from luthier.evaluation.grading.number import Number
from luthier.evaluation.grading.own_metric import OwnMetric
from luthier.evaluation.grading.pattern import Pattern
from luthier.evaluation.grading.python_source import PythonSource
from luthier.evaluation.grading.string_check import StringCheck
from luthier.evaluation.grading.text_similarity import TextSimilarity

OneGrader = Annotated[
    StringCheck
    | Number
    | Pattern
    | JsonForm
    | JsonFields
    | Length
    | TextSimilarity
    | Code
    | PythonSource
    | OwnMetric
    | Instructions
    | ScoreModel
    | LabelModel,
    Field(discriminator="kind"),
]
