"""How the next token is chosen, and when an answer ends."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from luthier.types import Settings, fault_at


class Sampling(Settings):
    """How text is drawn from a model. Penalties and biases come first, then a constraint, then temperature, top_k, top_p
    and min_p, in this order."""

    temperature: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="Divides the scores before drawing; 1 draws as the model says, 0 takes the likeliest token.",
    )
    top_k: int | None = Field(None, ge=1, description="Draw from the so many likeliest tokens only; unset: from all.")
    top_p: float = Field(
        1.0, gt=0, le=1, description="Draw from the fewest likeliest tokens that hold this share of the probability."
    )
    min_p: float = Field(
        0.0, ge=0, le=1, description="Draw only from tokens at least this share as likely as the likeliest one."
    )
    stop: tuple[str, ...] = Field(
        (), description="Texts that end the answer; the answer is cut before the first of them."
    )
    seed: int = Field(
        0,
        ge=0,
        lt=2**63,
        description="Number that decides all draws: the same seed, prompt and model give the same text.",
    )
    max_new_tokens: int = Field(256, ge=1, description="Most tokens of one answer.")

    repetition_penalty: float = Field(
        1.0,
        gt=0,
        description="Above 1 makes tokens of prompt and answer less likely to come again: divides scores above 0.",
    )
    frequency_penalty: float = Field(
        0.0, ge=-2, le=2, description="Taken from a token's score for each time that it is in the answer."
    )
    presence_penalty: float = Field(
        0.0, ge=-2, le=2, description="Taken from a token's score once it is in the answer."
    )
    logit_bias: tuple[tuple[int, float], ...] = Field(
        (), description="Pairs of a token's id and what is added to its score; a mapping from one to the other will do."
    )
    regex: str | None = Field(
        None, description="The answer matches this regular expression as a whole; needs luthier[constraints]."
    )
    json_schema: str | None = Field(
        None, description="The answer is JSON of this schema, itself JSON; needs luthier[constraints]."
    )

    @field_validator("stop", mode="before")
    @classmethod
    def _one_text_is_a_list_of_one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("stop")
    @classmethod
    def _stops_have_text(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "" in value:
            raise ValueError("a stop text is empty, which would end every answer at once; leave it out.")
        return value

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _a_mapping_is_its_pairs(cls, value: Any) -> Any:
        return tuple((int(token), bias) for token, bias in value.items()) if isinstance(value, Mapping) else value

    @field_validator("json_schema", mode="before")
    @classmethod
    def _a_schema_is_its_text(cls, value: Any) -> Any:
        return json.dumps(value) if isinstance(value, Mapping) else value

    @model_validator(mode="after")
    def _one_constraint(self) -> Self:
        if self.regex is not None and self.json_schema is not None:
            raise fault_at("regex", "regex and json_schema are both given; leave one of them out.")
        return self

    @property
    def keeps_probabilities(self) -> bool:
        """Whether tokens are drawn from the model's own probabilities, but for temperature and limits."""
        return not (self.is_penalised or self.logit_bias or self.is_constrained)

    @property
    def is_penalised(self) -> bool:
        """Whether tokens that were there are made less likely, or more."""
        return self.repetition_penalty != 1 or self.frequency_penalty != 0 or self.presence_penalty != 0

    @property
    def is_constrained(self) -> bool:
        """Whether a grammar says which tokens may come."""
        return self.regex is not None or self.json_schema is not None

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always taken, so that nothing is drawn."""
        return self.temperature == 0
