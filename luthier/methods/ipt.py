"""IPT, intrinsic prompt tuning: a few numbers that a decoder, learned from other tasks, turns into a whole prompt.

Qin et al. 2021, https://arxiv.org/abs/2110.07867. A prompt p, flattened to V · D numbers, is coded and decoded by

    z = W₁ p + c₁,   p̂ = W₃ tanh(W₂ z + c₂) + c₃,   z of I numbers, the inner layer of H

- `stage: subspace` learns coder and decoder:  loss of the data under p̂  +  α · mean (p̂ − p)².
- `stage: tune` drops the coder, freezes the decoder, and trains z alone, from N(0, 0.02²).

The paper's: the shapes, α = 200, both losses, the start of z; and as a baseline a random frozen decoder, which is what
`tune` has if no `decoder` is named. Ours, because a run has the data of one recipe: `tasks` names finished runs of prompt
tuning (or folders in peft's format), all of whose prompts are autoencoded, but the loss of the data is taken under the
reconstruction of the first, to whose task the data should belong; in the paper each task's data is under its own. The
paper trained encoder-decoder models; this is the same at the input of a decoder.

The adapter that either stage leaves is the code z and the decoder, of the first task after `subspace`, so `decoder` and
`from` both take it: `decoder` keeps the decoder, `from` the code as well. Beside it lies the prompt that they make, in
peft's PROMPT_TUNING form, for peft and for prompt tuning to go on from (the paper's third stage).

Merges: no. Deep backward: yes, to the input. Over 4 bits: yes. Identity at the start: no.
Trainable numbers: tune I; subspace VD · I + I + HI + H + H · VD + VD.
Shapes: V virtual tokens, D width of the embedding, J tasks, P = V · D, I intrinsic numbers, H inner width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from luthier.methods.adapter_files import AdapterFile, Form, OwnForm
from luthier.methods.contract import Kin, Traits
from luthier.methods.prompt_files import TABLE
from luthier.methods.prompt_networks import draw_as_torch_does, empty_linear
from luthier.methods.prompt_tuning import PROMPT_FORM
from luthier.methods.soft_prompts import PromptSource, SoftPromptMethod, width_of
from luthier.models.anatomy import Anatomy
from luthier.models.language_model import LanguageModel

_DECODER = ("inner.weight", "inner.bias", "outer.weight", "outer.bias")
_START_STD = 0.02


class IPTForm(Form):
    """Code and decoder in a form of our own, and beside them the prompt that they make in peft's."""

    own: ClassVar[OwnForm] = OwnForm("ipt")

    def read(self, source: str) -> AdapterFile:
        """Code and decoder."""
        return self.own.read(source)

    def write(self, folder: Path, file: AdapterFile, anatomy: Anatomy, is_transposed: bool) -> None:
        """Both."""
        self.own.write(folder, file, anatomy, is_transposed)
        rows_VD = file.tensors[TABLE]
        sizes = {"token_dim": rows_VD.shape[1], "num_layers": len(anatomy.layers), "num_transformer_submodules": 1}
        settings = {"num_virtual_tokens": len(rows_VD)}
        prompt = AdapterFile(file.path, settings, {TABLE: rows_VD}, file.base, sizes, head=file.head, task=file.task)
        PROMPT_FORM.write(folder, prompt, anatomy, is_transposed)


class IPT(SoftPromptMethod):
    """A prompt in a subspace that other tasks span."""

    family: ClassVar[Kin] = "soft-prompt"
    paper: ClassVar[str] = "Qin et al. 2021, https://arxiv.org/abs/2110.07867"
    count: ClassVar[str] = "tune: I; subspace: VD · I + I + HI + H + H · VD + VD"
    traits: ClassVar[Traits] = Traits(merges=False, deep_backward=True, over_4bit=True, identity_at_start=False)
    default_lr: ClassVar[float] = 3e-3
    form: ClassVar[IPTForm] = IPTForm()
    path_fields: ClassVar[tuple[str, ...]] = ("begin_from", "tasks", "decoder")

    kind: Literal["ipt"] = "ipt"
    stage: Literal["subspace", "tune"] = Field(
        "tune", description="subspace learns coder and decoder from the prompts of `tasks`; tune trains a code alone."
    )
    intrinsic: int = Field(250, ge=1, description="Numbers that a prompt is coded in.")
    inner: int = Field(768, ge=1, description="Width of the decoder's inner layer.")
    tasks: tuple[str, ...] = Field(
        (),
        description="With stage subspace: finished runs of prompt tuning, or their folders; the data should be the first one's.",
    )
    alpha: float = Field(
        200.0,
        ge=0,
        allow_inf_nan=False,
        description="With stage subspace: weight of the prompts' reconstruction beside the loss of the data.",
    )
    decoder: str | None = Field(
        None,
        description="With stage tune: a finished run of stage subspace; unset: a random decoder, the paper's baseline.",
    )

    @model_validator(mode="after")
    def _stage_has_its_own(self) -> Self:
        if (self.stage == "subspace") != bool(self.tasks):
            raise ValueError("tasks and stage: subspace go together: name the runs whose prompts span the subspace.")
        if self.stage == "subspace" and self.decoder is not None:
            raise ValueError("stage: subspace learns a decoder; leave decoder out, or set stage: tune.")
        if self.begin_from is not None and self.decoder is not None:
            raise ValueError("from brings its own decoder; leave decoder out.")
        return self

    def source(self, model: LanguageModel, generator: torch.Generator) -> PromptSource:
        """The code and its decoder, or what learns them."""
        decoder = PromptDecoder(self.num_virtual_tokens, width_of(model), self.intrinsic, self.inner)
        draw_as_torch_does(decoder, generator)
        if self.stage == "subspace":
            return SubspaceSource(decoder, self._task_prompts(model), self.intrinsic, self.alpha, generator)
        if self.decoder is not None:
            self._take_decoder(decoder, self.decoder)
        return CodeSource(decoder, torch.randn(self.intrinsic, generator=generator) * _START_STD)

    def file_settings(self) -> dict[str, Any]:
        """The sizes. What a run leaves is a code to tune, whichever stage it was, and holds no folder of this machine."""
        sizes = super().file_settings()
        return {**{field: sizes[field] for field in ("num_virtual_tokens", "intrinsic", "inner")}, "stage": "tune"}

    def stated(self, model: LanguageModel) -> dict[str, Any]:
        """As for any adapter, with the stage that the recipe asks for."""
        stated = super().stated(model)
        return {**stated, "stage": self.stage} if "stage" in stated else stated

    def _task_prompts(self, model: LanguageModel) -> Tensor:
        """The prompts of all tasks, flattened, shape (J, P). Raises RecipeError for one of another size."""
        prompts: list[Tensor] = []
        wanted = (self.num_virtual_tokens, width_of(model))
        for task in self.tasks:
            file = PROMPT_FORM.read(task)
            file.check_names({TABLE})
            file.check_shape(TABLE, wanted)
            prompts.append(file.tensors[TABLE].float().flatten())
        return torch.stack(prompts)

    def _take_decoder(self, decoder: PromptDecoder, folder: str) -> None:
        file = self.form.read(folder)
        for name in _DECODER:
            file.check_shape(f"decoder.{name}", tuple(decoder.get_parameter(name).shape))
        decoder.load_state_dict({name: file.tensors[f"decoder.{name}"] for name in _DECODER})


class PromptDecoder(nn.Module):
    """p̂ = W₃ tanh(W₂ z + c₂) + c₃."""

    def __init__(self, count: int, width: int, intrinsic: int, inner: int) -> None:
        super().__init__()
        self.inner = empty_linear(intrinsic, inner)
        self.outer = empty_linear(inner, count * width)
        self.num_virtual = count

    def forward(self, z: Tensor) -> Tensor:
        """Prompts (…, P) of codes (…, I)."""
        prompts: Tensor = self.outer(torch.tanh(self.inner(z)))
        return prompts

    def rows(self, z_I: Tensor) -> Tensor:
        """A prompt's rows (V, D)."""
        prompt_P: Tensor = self(z_I)
        return prompt_P.view(self.num_virtual, -1)


class CodeSource(PromptSource):
    """A code that trains, and a decoder that does not."""

    def __init__(self, decoder: PromptDecoder, z_I: Tensor) -> None:
        super().__init__()
        self.z = nn.Parameter(z_I)
        self.decoder = decoder
        for parameter in decoder.parameters():
            parameter.requires_grad_(False)

    def forward(self) -> Tensor:
        """The decoded prompt, shape (V, D)."""
        return self.decoder.rows(self.z)


class SubspaceSource(PromptSource):
    """Coder and decoder in training, and the prompts (J, P) that they are to reconstruct."""

    def __init__(
        self, decoder: PromptDecoder, prompts_JP: Tensor, intrinsic: int, alpha: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.coder = empty_linear(prompts_JP.shape[1], intrinsic)
        draw_as_torch_does(self.coder, generator)
        self.decoder = decoder
        self.alpha = alpha
        self.register_buffer("prompts_JP", prompts_JP)

    def forward(self) -> Tensor:
        """The first task's prompt, coded and decoded, shape (V, D)."""
        return self.decoder.rows(self._first_code())

    def penalty(self) -> Tensor:
        """α · mean (p̂ − p)² over all tasks and numbers."""
        prompts_JP = self.get_buffer("prompts_JP")
        rebuilt_JP: Tensor = self.decoder(self.coder(prompts_JP))
        return self.alpha * (rebuilt_JP - prompts_JP).square().mean()

    def file_tensors(self) -> dict[str, Tensor]:
        """The first task's code, the decoder, and the prompt that they make; the coder is not needed any more."""
        decoder = {f"decoder.{name}": tensor.detach() for name, tensor in self.decoder.named_parameters()}
        return {TABLE: self().detach(), "z": self._first_code().detach(), **decoder}

    def _first_code(self) -> Tensor:
        code_I: Tensor = self.coder(self.get_buffer("prompts_JP")[0])
        return code_I
