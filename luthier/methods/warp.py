"""WARP: learned words around the input, and a learned row for each class in the place of the rows of words.

Hambardzumyan, Khachatrian & May 2021, ACL 2021 (from memory: https://arxiv.org/abs/2101.00121). A masked model reads K learned
embeddings P, its own mask and the text; z is what its head over words makes of the mask, before the rows of the vocabulary:

    z = LayerNorm(g(W h_mask + c)),   y_c = v_c · z + b_c,   p = softmax over the C classes

with P, V and b learned, and all else frozen. So it is for encoders with a masked head and `objective.kind: classification`:
the classes are the objective's. V begins small and random with b = 0, or, with `classes`, as the rows of these words and
their biases in the head: then the model begins as a choice among these words at the mask (a cloze). The paper allows P
anywhere in the text. Ours stands in front, P then the mask, at positions 0 to K; the text goes on from position K + 1.

For a model that writes, which the paper does not treat, this is our extension: P stands before the document as in prompt
tuning, z is the state after the final norm that the next token is read from, and in the logits of the vocabulary those of
`classes` (words of one token each) are

    y_c = v_c · z + b_c      in place of the head's row; all other logits stay.

Among the classes, the odds are the paper's. The softmax is over all tokens, so that rows may be learned whole, with what
follows the class word. The learned rows begin as the head's own, so at first only P changes anything.

Merges: no. Deep backward: yes, to the input. Over 4 bits: yes. Identity at the start: no.
Trainable numbers: V · D + C · O + C.
Shapes: V virtual tokens (K, without the mask), D width of the embedding, O width of the states, C classes, N tokens.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from luthier.errors import RecipeError
from luthier.methods.adapter import generator_of, moved, trainable
from luthier.methods.adapter_attachment import AdapterAttachment
from luthier.methods.adapter_files import OwnForm
from luthier.methods.bank import AdaptedLinear, LinearBranch, adapted
from luthier.methods.contract import Kin, Traits
from luthier.methods.soft_prompts import RowSource, SoftPromptAttachment, WordPromptMethod, place_prompt, tokens_of
from luthier.models.call import Run
from luthier.models.heads import ClassHead
from luthier.models.language_model import LanguageModel
from luthier.models.reading import words_layer


class WARP(WordPromptMethod):
    """A prompt, and a row for each class in the place of the head's rows of words."""

    family: ClassVar[Kin] = "soft-prompt"
    paper: ClassVar[str] = "Hambardzumyan et al. 2021, ACL 2021"
    count: ClassVar[str] = "V · D + C · O + C"
    traits: ClassVar[Traits] = Traits(merges=False, deep_backward=True, over_4bit=True, identity_at_start=False)
    default_lr: ClassVar[float] = 3e-3
    form: ClassVar[OwnForm] = OwnForm("warp")

    kind: Literal["warp"] = "warp"
    classes: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="Words of one token each; a space before a word is part of it. For a model that writes, those that answers choose among; for an encoder, what each of the objective's classes begins as, in their order; unset there: at random.",
    )

    def lacking(self, takes_labels: bool) -> tuple[str, ...]:
        """The classes, where neither the objective nor an adapter has them."""
        is_told = takes_labels or self.classes is not None or self.begin_from is not None
        return () if is_told else ("classes",)

    def class_head(self, head: ClassHead) -> ClassHead:
        """One that reads a mask. Raises RecipeError for a head that reads every token."""
        if head.reads == "tokens":
            raise RecipeError(
                "WARP reads classes at one mask before a text, and here every token has a class of its own.",
                "Set method.kind to prompt-tuning.",
                field="method.kind",
            )
        return replace(head, reads="mask")

    def source(self, model: LanguageModel, generator: torch.Generator) -> RowSource:
        """The rows of the prompt."""
        return RowSource(self.first_rows(model, generator))

    def place(self, model: LanguageModel, name: str, seed: int, fast: bool) -> AdapterAttachment:
        """A fresh prompt at the embedding, and fresh rows at the head. Raises RecipeError for a head that has neither place."""
        if model.anatomy.purpose == "words":
            return self._among_words(model, name, seed)
        return self._at_mask(model, name, seed)

    def _at_mask(self, model: LanguageModel, name: str, seed: int) -> AdapterAttachment:
        """The paper's: behind the prompt a mask, which the new last layer of the head reads."""
        if not model.anatomy.reads_mask:
            raise RecipeError(
                "WARP reads classes off what the head over words makes of a mask, and this model was loaded with a head for "
                "classes in its place.",
                "Load it with the head that WARP(...).class_head gives, as a recipe with this method does.",
                field="method.kind",
            )
        mask = model.tokenizer.mask_token_id
        if not isinstance(mask, int):
            raise RecipeError(
                "The model's tokenizer has no mask token.",
                "Set mask_token in its tokenizer_config.json.",
                field="model",
            )
        first_classes = self._first_classes(model)
        source = moved(self.source(model, generator_of(self.kind, seed)), model.device)
        embedding = place_prompt(model, name, source, self.num_virtual_tokens, mask)
        attachment = SoftPromptAttachment(self, model, name, source, {embedding.name: embedding})
        attachment.begin_head(first_classes)
        return attachment

    def _first_classes(self, model: LanguageModel) -> dict[str, Tensor]:
        """What V and b begin as, by the names that the model has for them; nothing if they begin as the model has them."""
        if self.classes is None:
            return {}
        if len(self.classes) != len(model.classes):
            raise RecipeError(
                f"There are {len(self.classes)} words for the {len(model.classes)} classes {', '.join(model.classes)}.",
                "Give one word for each of them, in this order, or leave method.classes out.",
                field="method.classes",
            )
        words = words_layer(model.hf)
        assert isinstance(words, nn.Linear)
        token_C = self._class_tokens(model, self.classes).to(model.device)
        head = model.anatomy.head
        return {f"{head}.weight": words.weight[token_C], f"{head}.bias": words.bias[token_C]}

    def _among_words(self, model: LanguageModel, name: str, seed: int) -> AdapterAttachment:
        """Our extension: rows of their own for the words of the classes."""
        if self.classes is None:
            raise RecipeError(
                "WARP has no classes.", "Name the words that answers choose among.", field="method.classes"
            )
        if not model.is_head_read:
            raise RecipeError(
                "WARP learns what the head says of its words, and the objective asks nothing of the head.",
                "Set method.kind to prompt-tuning.",
                field="method.kind",
            )
        token_C = self._class_tokens(model, self.classes).to(model.device)
        source = moved(self.source(model, generator_of(self.kind, seed)), model.device)
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

    def _class_tokens(self, model: LanguageModel, words: tuple[str, ...]) -> Tensor:
        """The token of each word, shape (C,). Raises RecipeError for a word of several tokens, or two of one."""
        found = [tokens_of(model, word) for word in words]
        for word, tokens in zip(words, found, strict=True):
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
    """At the head of a model that writes: the logits of the classes by rows of their own."""

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
