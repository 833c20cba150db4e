"""What a recipe says about the base model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from luthier.types import Settings, fault_at


class ModelSettings(Settings):
    """Which base model, in which number format, on which device. A recipe may give the name alone.

    With `config` there is no base: the model begins at random weights. `name` then is only what it is called.
    """

    name: str = Field(
        "",
        description="A built-in name (smollm2-135m), a local folder, a hub id (owner/model), or a .gguf file. With config: what the new model is called.",
    )
    config: str | dict[str, Any] | None = Field(
        None,
        description="Begin at random weights of this config: a config.json or its folder, a name such as llama-2m, bert-2m, modernbert-2m or t5-2m, or the config itself, such as {model_type: llama, hidden_size: 128}. vocab_size and the ids of special tokens follow the tokenizer.",
    )
    tokenizer: str | None = Field(
        None, description="With config: the folder of its tokenizer; unset: the config's own folder."
    )
    add_tokens: tuple[str, ...] = Field(
        (),
        description="Special tokens that the model does not have yet, such as markers; they get rows of their own, which train with full and beside any adapter that lets a gradient reach the embedding.",
    )
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="Number format of the frozen weights; 'auto' is fp32 on a CPU and bf16 on a GPU that has it.",
    )
    device: str = Field("auto", description="'auto', 'cpu', 'cuda', or 'cuda:N'.")
    trust_tokenizer: bool = Field(
        False,
        description="Train even where the tokenizer looks like another model's: where the config's end of text is an ordinary word of it, it expects other tokens than the rows have, or the first loss is more than 1.5 nats above a guess.",
    )
    revision: str | None = Field(None, description="Branch, tag or commit of a hub model.")

    @model_validator(mode="before")
    @classmethod
    def _named_after_its_config(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("name") or values.get("config") is None:
            return values
        config = values["config"]
        kind = config.get("model_type") if isinstance(config, dict) else None
        return {**values, "name": config if isinstance(config, str) else f"a new {kind or 'model'}"}

    @model_validator(mode="after")
    def _is_one_or_the_other(self) -> Self:
        if not self.name:
            raise fault_at("model.name", "model.name is missing; name a model, or give model.config for a new one.")
        if self.tokenizer is not None and self.config is None:
            raise fault_at(
                "model.tokenizer",
                "model.tokenizer goes with model.config alone; leave it out, since a model has its own tokenizer.",
            )
        for token in self.add_tokens:
            if not token.strip() or self.add_tokens.count(token) > 1:
                raise fault_at("model.add_tokens", f"{token!r} is blank or named twice; name each new token once.")
        if self.add_tokens and self.config is not None:
            raise fault_at(
                "model.add_tokens",
                "A new model has its tokenizer's tokens; train that with 'luthier tokenizer --special TOKEN' instead.",
            )
        return self

    def at(self, folder: Path) -> ModelSettings:
        """The settings of a model that came of this one and lies in a folder."""
        return ModelSettings(name=str(folder), dtype=self.dtype, device=self.device)
