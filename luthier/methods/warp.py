"""WARP: learned words around the input, and learned output rows for the words that name the classes.

Hambardzumyan, Khachatrian & May 2021, ACL 2021 (from memory: https://arxiv.org/abs/2101.00121). The paper puts K learned
embeddings P around the input of a masked model and scores class c at the mask by v_c · z + b_c, with V_c and b learned.

For a decoder, which the paper does not treat, this is our extension: P stands before the document as in prompt tuning, z is
the state after the final norm that the next token is read from, and in the logits of the vocabulary those of `classes`
(words of one token each) are

    y_c = v_c · z + b_c      in place of the head's row; all other logits stay.

Among the classes, the odds are the paper's. The softmax is over all tokens, so that rows may be learned whole, with what
follows the class word. The learned rows begin as the head's own, so at first only P changes anything.

Merges: no. Deep backward: yes, to the input. Over 4 bits: yes. Identity at the start: no.
Trainable numbers: V · D + C · O + C.
Shapes: V virtual tokens, D width of the embedding, O width of the states, C classes, N tokens.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from luthier.errors import RecipeError
from luthier.methods.adapter import AdapterAttachment, generator_of, trainable
from luthier.methods.adapter_files import OwnForm
from luthier.methods.bank import AdaptedLinear, LinearBranch, adapted
from luthier.methods.contract import Kin, Traits
from luthier.methods.soft_prompts import RowSource, SoftPromptAttachment, WordPromptMethod, place_prompt, tokens_of
from luthier.models.call import Run
from luthier.models.language_model import LanguageModel


class WARP(WordPromptMethod):
    """A prompt, and rows of the head for the words of the classes."""

    family: ClassVar[Kin] = "soft-prompt"
    paper: ClassVar[str] = "Hambardzumyan et al. 2021, ACL 2021"
    count: ClassVar[str] = "V · D + C · O + C"
    traits: ClassVar[Traits] = Traits(merges=False, deep_backward=True, over_4bit=True, identity_at_start=False)
    default_lr: ClassVar[float] = 3e-3
    form: ClassVar[OwnForm] = OwnForm("warp")

    kind: Literal["warp"] = "warp"
    classes: tuple[str, ...] = Field(
        min_length=1,
        description="The words that answers choose among, each one token; a space before a word is part of it.",
    )

    def source(self, model: LanguageModel, generator: torch.Generator) -> RowSource:
        """The rows of the prompt."""
        return RowSource(self.first_rows(model, generator))

    def place(self, model: LanguageModel, name: str, seed: int, fast: bool) -> AdapterAttachment:
        """A fresh prompt at the embedding, and fresh rows at the head. Raises RecipeError for a head that has no words."""
        if model.anatomy.purpose == "classes":
            raise RecipeError(
                "WARP reads classes off the head over the vocabulary, which a head for classes takes the place of.",
                "Set method.kind to prompt-tuning, or objective.kind to sft with a model that writes.",
                field="method.kind",
            )
        token_C = self._class_tokens(model).to(model.device)
        source = self.source(model, generator_of(self.kind, seed)).to(model.device)
        embedding = place_prompt(model, name, source, self.num_virtual_tokens)
        head = adapted(model, model.anatomy.head)
        assert isinstance(head, AdaptedLinear)
        rows_CO = trainable(head.weight[token_C].clone(), model.device)
        start_C = torch.zeros(len(token_C)) if head.bias is None else head.bias[token_C].clone()
        branch = ClassBranch(token_C, rows_CO, trainable(start_C, model.device))
        head.add(name, branch)
        beside = {"class_embeddings": branch.rows_CO, "class_bias": branch.bias_C}
        layers = {embedding.name: embedding, head.name: head}
        return SoftPromptAttachment(self, model, name, source, layers, beside=beside)

    def _class_tokens(self, model: LanguageModel) -> Tensor:
        """The token of each class, shape (C,). Raises RecipeError for a word of several tokens, or two of one."""
        found = [tokens_of(model, word) for word in self.classes]
        for word, tokens in zip(self.classes, found, strict=True):
            if len(tokens) != 1:
                raise RecipeError(
                    f"The class {word!r} has {len(tokens)} tokens, but a class is one.",
                    "Choose a word that the tokenizer keeps whole, perhaps with a space before it.",
                    field="method.classes",
                )
        if len({tokens[0] for tokens in found}) < len(found):
            raise RecipeError(
                "Two of the classes have the same token.", "Name each class once.", field="method.classes"
            )
        return torch.tensor([tokens[0] for tokens in found])


class ClassBranch(LinearBranch):
    """At the head: the logits of the classes by rows of their own."""

    def __init__(self, token_C: Tensor, rows_CO: nn.Parameter, bias_C: nn.Parameter) -> None:
        super().__init__()
        self.register_buffer("token_C", token_C, persistent=False)
        self.rows_CO, self.bias_C = rows_CO, bias_C

    @property
    def tensors(self) -> dict[str, nn.Parameter]:
        """None of the layer's own: the attachment names them."""
        return {}

    def forward(self, x_NI: Tensor, layer: AdaptedLinear, run: Run) -> Tensor:
        """The logits of a run's tokens."""
        y_NO = layer.product(x_NI)
        own_NC = F.linear(x_NI, self.rows_CO.to(x_NI.dtype), self.bias_C.to(x_NI.dtype))
        return y_NO.index_copy(1, self.get_buffer("token_C"), own_NC.to(y_NO.dtype))
