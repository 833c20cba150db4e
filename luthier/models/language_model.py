"""A language model behind one small view: its parts by role, and a forward pass from batches to log-probabilities."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from luthier.errors import RecipeError
from luthier.models.anatomy import Anatomy, config_number
from luthier.models.call import Adapters, Call, Draws, Run, call_of_batch, calling, current_call
from luthier.models.fast_layers import FastLinear
from luthier.models.heads import ACTIVATIONS, classes_of
from luthier.models.sides import Side, combined, skip_layers, tap_layers
from luthier.models.trunk import TrunkCache
from luthier.models.virtual_tokens import VirtualTokens, keep_prefixes, placed_prefixes, shown_positions
from luthier.ops.head import LogitsOf, token_logprobs, token_logprobs_recomputed, token_logprobs_reference
from luthier.ops.recompute import Recomputable
from luthier.types import Batch, Layout, Segment, Targets


@dataclass(frozen=True)
class FastModel:
    """Which parts of the model run on the operations of `ops` rather than as in transformers."""

    attention: bool = True
    head: bool = True
    gated_mlp: bool = True
    norm: bool = True
    linear: bool = True


@dataclass(frozen=True)
class Identity:
    """Which weights these are: the name they were asked for by, and the hash of their files."""

    name: str
    sha256: str


@dataclass(frozen=True)
class Outputs:
    """What a forward pass gives an objective: log-probabilities (nats, fp32) of the batch's targets, shape (N,).

    hidden_ND and head_call are what the head reads at the targets, for a loss over whole distributions.
    """

    logprob_N: Tensor
    hidden_ND: Tensor
    targets: Targets
    head_call: Call


@dataclass
class LanguageModel:
    """A transformers model and its tokenizer, seen through the model's anatomy.

    new_head: the layers of its head that no file held, so that whatever is tuned must train them too.
    """

    hf: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    anatomy: Anatomy
    identity: Identity
    fast: FastModel = field(default_factory=FastModel)
    sides: dict[str, Side] = field(default_factory=dict)
    virtual_tokens: dict[str, VirtualTokens] = field(default_factory=dict)
    trunk_cache: TrunkCache | None = None
    new_head: tuple[str, ...] = ()

    @property
    def layout(self) -> Layout:
        """Which batches the model's attention allows."""
        return self.anatomy.family.layout

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.hf.device

    @property
    def dtype(self) -> torch.dtype:
        """The number format of the frozen weights."""
        return self.hf.dtype

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding."""
        return int(self.hf.get_submodule(self.anatomy.embedding).get_parameter("weight").shape[0])

    @property
    def context_length(self) -> int | None:
        """The most positions that the model was made for; None if its config does not say."""
        config = self.hf.config.to_dict()
        for key in ("max_position_embeddings", "n_positions"):
            if config.get(key) is not None:
                return int(config[key]) - self.first_position
        return None

    @property
    def first_position(self) -> int:
        """What the model calls the position that batches call 0."""
        return self.hf.config.pad_token_id + 1 if self.anatomy.family.positions_follow_padding else 0

    @property
    def classes(self) -> tuple[str, ...]:
        """What the head tells apart, in the order of its logits; empty where it is a head over words."""
        return classes_of(self.hf.config) if self.anatomy.purpose == "classes" else ()

    @property
    def longest_stable_row(self) -> int | None:
        """The longest row whose rotary positions do not depend on what else is in the batch; None if none does.

        `dynamic` and `longrope` scaling choose their frequencies by the longest position of the whole call.
        """
        config = self.hf.config.to_dict()
        rope = config.get("rope_parameters") or {}
        if rope.get("rope_type") not in ("dynamic", "longrope"):
            return None
        original = rope.get("original_max_position_embeddings") or config.get("original_max_position_embeddings")
        return int(original or config["max_position_embeddings"])

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end an answer: the tokenizer's and the model's own end tokens."""
        ids: set[int] = set()
        for value in (self.tokenizer.eos_token_id, self.hf.config.eos_token_id, self._generation_stop()):
            ids.update([value] if isinstance(value, int) else (value or ()))
        return frozenset(ids)

    def _generation_stop(self) -> int | list[int] | None:
        config = self.hf.generation_config
        stop: int | list[int] | None = None if config is None else config.eos_token_id
        return stop

    @property
    def pad_id(self) -> int:
        """What fills padding; masked everywhere, so any id serves where the tokenizer has none."""
        pad = self.tokenizer.pad_token_id
        return pad if isinstance(pad, int) else 0

    def num_virtual(self, adapter: str | None) -> int:
        """How many placeholders a document must begin with under an adapter, because it puts virtual tokens there."""
        virtual = None if adapter is None else self.virtual_tokens.get(adapter)
        return 0 if virtual is None else virtual.count

    def hidden(self, batch: Batch, adapters: Adapters = None, draws: Draws | None = None) -> Tensor:
        """The hidden states after the final norm, shape (B, T, D)."""
        return self._hidden(batch, call_of_batch(batch, adapters, draws))

    def _hidden(self, batch: Batch, call: Call) -> Tensor:
        inputs = {
            "input_ids": batch.tokens_BT,
            "position_ids": batch.positions_BT,
            "attention_mask": batch.mask_BT,
            "use_cache": False,
        }
        if batch.types_BT is not None and self._tells_token_types:
            inputs["token_type_ids"] = batch.types_BT
        if self.trunk_cache is None:
            return self._trunk(call, **inputs)
        held = self.trunk_cache.read(batch)
        if held is not None:
            return self._above(call, held, inputs)
        call = replace(call, tapped={})
        hidden_BTD = self._trunk(call, **inputs)
        assert call.tapped is not None
        self.trunk_cache.write(batch, call.tapped)
        return hidden_BTD

    @property
    def _tells_token_types(self) -> bool:
        """Whether the model has an embedding for the tokens of a second text."""
        count = config_number(self.hf.config, self.anatomy.family.token_types_key)
        return count is not None and count > 1

    def _above(self, call: Call, held: dict[int, Tensor], inputs: dict[str, Any]) -> Tensor:
        """What `_trunk` gives, begun with states that are held from before."""
        sides = self._sides_of(call)
        held = {number: states.to(self.dtype) for number, states in held.items()}
        with calling(replace(call, tapped=held)):
            of_sides = {name: side(held, inputs) for name, side in sides.items()}
        if sides and all(run.adapter in sides for run in call.runs):
            return combined(next(iter(of_sides.values())), call, of_sides)
        highest = max(held)
        hidden_BTD = self._base(replace(call, entering=(highest, held[highest])), inputs)
        return combined(hidden_BTD, call, of_sides)

    def _sides_of(self, call: Call) -> dict[str, Side]:
        """The side networks of a call's runs by adapter."""
        names = {run.adapter for run in call.runs if run.adapter is not None}
        return {name: self.sides[name] for name in names & set(self.sides)}

    def keep_trunk(self, cache: TrunkCache) -> None:
        """From now on, keep what the frozen lower layers give for each document, and begin with it where it is held."""
        if not self.sides:
            tap_layers(self.hf, self.anatomy)
        skip_layers(self.hf, self.anatomy)
        self.trunk_cache = cache

    def _trunk(self, call: Call, **inputs: Any) -> Tensor:
        """The hidden states after the final norm, shape (B, T, D): the base's, or a side network's where a run has one."""
        sides = self._sides_of(call)
        if not sides:
            return self._base(call, inputs)
        call = replace(call, tapped={}) if call.tapped is None else call
        with torch.no_grad() if all(run.adapter in sides for run in call.runs) else nullcontext():
            hidden_BTD = self._base(call, inputs)
        assert call.tapped is not None
        tapped = call.tapped
        with calling(call):
            of_sides = {name: side(tapped, inputs) for name, side in sides.items()}
        return combined(hidden_BTD, call, of_sides)

    def _base(self, call: Call, inputs: dict[str, Any]) -> Tensor:
        positions_N = inputs["position_ids"].reshape(-1)
        prefixes = placed_prefixes(self.virtual_tokens, call.runs, positions_N)
        inputs = {**inputs, "position_ids": shown_positions(self.virtual_tokens, call.runs, inputs["position_ids"])}
        recomputable = Recomputable() if self.fast.norm and torch.is_grad_enabled() else None
        with (
            calling(replace(call, recomputable=recomputable, positions_N=positions_N, prefixes=prefixes)),
            nullcontext() if recomputable is None else recomputable.hooks(),
        ):
            output = self.hf.get_submodule(self.anatomy.trunk)(**self._placed(inputs))
        hidden_BTD: Tensor = output.last_hidden_state
        if prefixes and "past_key_values" in inputs:
            keep_prefixes(prefixes, inputs["past_key_values"], hidden_BTD.shape[1])
        return hidden_BTD

    def _placed(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The trunk's inputs with positions as the model counts them."""
        first = self.first_position
        return {**inputs, "position_ids": inputs["position_ids"] + first} if first else inputs

    def add_side(self, name: str, side: Side) -> None:
        """Let a side network make the hidden states of an adapter's tokens."""
        if not self.sides:
            tap_layers(self.hf, self.anatomy)
        self.sides[name] = side

    def final_norm(self, hidden_BTD: Tensor) -> Tensor:
        """The base's final norm; the states as they are where it has none."""
        if self.anatomy.final_norm is None:
            return hidden_BTD
        normed_BTD: Tensor = self.hf.get_submodule(self.anatomy.final_norm)(hidden_BTD)
        return normed_BTD

    def forward(self, batch: Batch, adapters: Adapters = None, draws: Draws | None = None) -> Outputs:
        """Log-probabilities of the batch's targets; the head runs at learned positions only.

        adapters: None is the base model; a name serves all documents; a tuple names one for each segment.
        draws: the address of this step's dropout; None drops nothing.
        """
        call = call_of_batch(batch, adapters, draws)
        source_N = batch.targets.source_N
        hidden_ND = self._hidden(batch, call).flatten(0, 1).index_select(0, source_N)
        head_call = call.at(source_N)
        logprob_N = self._logprobs(hidden_ND, batch.targets.token_N, head_call)
        return Outputs(logprob_N, hidden_ND, batch.targets, head_call)

    @torch.no_grad()
    def attention(self, batch: Batch, adapters: Adapters = None) -> Tensor:
        """How much each token takes of each before it, fp32, shape (L, H, T, T). Raises RecipeError for other layouts."""
        if self.layout != "packed":
            raise RecipeError(
                f"The attention of models of type {self.hf.config.model_type!r} cannot be looked into.",
                "Choose a model whose attention goes through transformers' attention interface.",
                field="model",
            )
        watched: list[Tensor] = []
        self._hidden(batch, replace(call_of_batch(batch, adapters, None), watched=watched))
        return torch.cat(watched)

    def prefill(
        self,
        tokens_1T: Tensor,
        positions_1T: Tensor,
        segments: tuple[Segment, ...],
        last_B: Tensor,
        cache: DynamicCache,
        adapters: str | None = None,
    ) -> Tensor:
        """fp32 logits of the token that follows each prompt of a packed row, shape (B, V); their keys go into `cache`.

        last_B: where each prompt's last token is. Only for models of the packed layout.
        """
        call = Call(segments, (Run(0, tokens_1T.numel(), adapters),))
        with torch.inference_mode():
            hidden_1TD = self._trunk(
                call, input_ids=tokens_1T, position_ids=positions_1T, past_key_values=cache, use_cache=True
            )
            last_BD = hidden_1TD[0, last_B]
        return self._next_logits(last_BD, adapters)

    def decode(
        self,
        tokens_BT: Tensor,
        positions_BT: Tensor,
        mask_BL: Tensor,
        cache: DynamicCache,
        adapters: str | None = None,
    ) -> Tensor:
        """fp32 logits of the token that follows each row, shape (B, V); the new keys and values go into `cache`.

        mask_BL covers the cached and the new positions; rows are padded on the left.
        """
        call = Call(None, (Run(0, tokens_BT.numel(), adapters),))
        with torch.inference_mode():
            hidden_BTD = self._trunk(
                call,
                input_ids=tokens_BT,
                position_ids=positions_BT,
                attention_mask=mask_BL,
                past_key_values=cache,
                use_cache=True,
            )
            last_BD = hidden_BTD[:, -1]
        return self._next_logits(last_BD, adapters)

    def _next_logits(self, last_BD: Tensor, adapters: str | None) -> Tensor:
        with torch.inference_mode(), calling(Call(None, (Run(0, len(last_BD), adapters),))):
            return self._logits(last_BD).float()

    def _logits(self, hidden_ND: Tensor) -> Tensor:
        """The head's logits, with what the family does to them, shape (N, V): of words, or of classes."""
        if self.anatomy.purpose == "classes":
            for part in self.anatomy.head_parts:
                hidden_ND = self.hf.get_submodule(part.name)(hidden_ND)
                hidden_ND = hidden_ND if part.activation is None else ACTIVATIONS[part.activation](hidden_ND)
            return hidden_ND
        logits_NV: Tensor = self.hf.get_submodule(self.anatomy.head)(self._scaled(hidden_ND))
        softcap = self._softcap
        return logits_NV if softcap is None else torch.tanh(logits_NV / softcap) * softcap

    def _scaled(self, hidden_ND: Tensor) -> Tensor:
        divisor = config_number(self.hf.config, self.anatomy.family.logit_divisor_key)
        return hidden_ND if divisor is None else hidden_ND / divisor

    @property
    def _softcap(self) -> float | None:
        return config_number(self.hf.config, self.anatomy.family.softcap_key)

    def head_of(self, call: Call) -> LogitsOf:
        """The head as a function of the hidden states of neighbouring positions of a call."""

        def logits_of(chunk_ND: Tensor, start: int) -> Tensor:
            with calling(call.slice(start, start + len(chunk_ND))):
                return self._logits(chunk_ND)

        return logits_of

    def _logprobs(self, hidden_ND: Tensor, tokens_N: Tensor, call: Call) -> Tensor:
        logits_of = self.head_of(call)
        if not self.fast.head or self.anatomy.purpose == "classes":
            return token_logprobs_reference(hidden_ND, tokens_N, logits_of)
        head = self.hf.get_submodule(self.anatomy.head)
        is_plain = type(head) in (nn.Linear, FastLinear) and not head.weight.requires_grad
        if not is_plain or torch.is_autocast_enabled(hidden_ND.device.type):
            return token_logprobs_recomputed(hidden_ND, tokens_N, logits_of)
        bias_V = head.bias if isinstance(head, nn.Linear) else None
        return token_logprobs(self._scaled(hidden_ND), tokens_N, head.get_parameter("weight"), bias_V, self._softcap)

    def checkpoint_layers(self) -> None:
        """From now on, recompute every layer in the backward pass rather than keep what is inside it."""
        for layer in self.anatomy.layers:
            module = self.hf.get_submodule(layer.name)
            module.forward = _recomputed(module.forward)


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The same function of its inputs, computed again in the backward pass, within the same call."""

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        call = replace(current_call(), recomputable=None, is_checkpointed=True)
        return checkpoint(
            forward,
            *args,
            use_reentrant=False,
            preserve_rng_state=False,  # draws are keyed by token: there is no generator to restore
            context_fn=lambda: (calling(call), calling(call)),
            **kwargs,
        )

    return wrapped
