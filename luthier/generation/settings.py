"""How the next token is chosen, and when an answer ends."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from luthier.types import Settings


class Sampling(Settings):
    """How text is drawn from a model. Limits apply in the order temperature, top_k, top_p, min_p."""

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

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always taken, so that nothing is drawn."""
        return self.temperature == 0
