"""A language model behind one small view: its parts by role, and a forward pass from batches to log-probabilities.

An encoder-decoder runs twice for a batch: its encoder over the sources, then its decoder over the batch's own tokens.
Shapes: B rows, T tokens of a row, S tokens of a source, D width, N learned targets, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from luthier.errors import RecipeError
from luthier.models.anatomy import Anatomy, config_number
from luthier.models.call import (
    Adapters,
    Call,
    Draws,
    Gate,
    HeldKeys,
    Run,
    call_of_batch,
    calling,
    prompts_of_batch,
    prompts_of_row,
    prompts_of_rows,
)
from luthier.models.edits import StreamEdit, edit_layers, placed_edits
from luthier.models.gated_prefixes import gated_prefixes, note_shares
from luthier.models.heads import classes_of
from luthier.models.logits import logits
from luthier.models.outputs import HeadCall, Outputs
from luthier.models.pooling import row_means
from luthier.models.positions import context_length, first_position
from luthier.models.recomputed import recompute_layers
from luthier.models.sides import Side, combined, skip_layers, tap_layers
from luthier.models.stacks import Encoded, encoded, last_states
from luthier.models.taps import Tapped, highest
from luthier.models.trunk import TrunkCache
from luthier.models.untaken_positions import leave_positions
from luthier.models.virtual_tokens import VirtualTokens, read_tokens, shown_positions
from luthier.types import Batch, Layout, Segment, Sources


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


@dataclass
class LanguageModel:
    """A transformers model and its tokenizer, seen through the model's anatomy.

    new_head: the layers of its head that no file held, so that whatever is tuned must train them too. new_tokens: the ids of
    tokens whose rows no file held, likewise. is_head_read: whether what is learned is told by the head; if not, no layer of it
    trains. prepared: by layer, the tensors that a method begins with there because of how the base was quantized for it.
    """

    hf: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    anatomy: Anatomy
    identity: Identity
    fast: FastModel = field(default_factory=FastModel)
    sides: dict[str, Side] = field(default_factory=dict)
    virtual_tokens: dict[str, VirtualTokens] = field(default_factory=dict)
    edits: dict[str, StreamEdit] = field(default_factory=dict)
    trunk_cache: TrunkCache | None = None
    new_head: tuple[str, ...] = ()
    new_tokens: tuple[int, ...] = ()
    is_head_read: bool = True
    prepared: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)

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
        return context_length(self.hf.config)

    @property
    def first_position(self) -> int:
        """What the model calls the position that batches call 0."""
        return first_position(self.hf.config)

    @property
    def classes(self) -> tuple[str, ...]:
        """What the head tells apart, in the order of its logits; empty where it is a head over words."""
        return classes_of(self.hf.config) if self.anatomy.purpose == "classes" else ()

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

    @property
    def answer_start(self) -> int | None:
        """The token that an encoder-decoder's decoder begins with; None for a model of one stream."""
        if self.anatomy.encoder is None:
            return None
        assert self.hf.generation_config is not None
        start: int | None = self.hf.generation_config.decoder_start_token_id
        return start

    def num_virtual(self, adapter: str | None) -> int:
        """How many placeholders a document (for an encoder-decoder, a source) must begin with for an adapter's virtual tokens."""
        virtual = None if adapter is None else self.virtual_tokens.get(adapter)
        return 0 if virtual is None else virtual.count

    def shares_tokens(self, adapter: str | None) -> bool:
        """Whether documents may share the tokens of a common beginning under an adapter: it treats them alike."""
        edit = None if adapter is None else self.edits.get(adapter)
        return edit is None or edit.shares_tokens

    def num_virtual_answer(self, adapter: str | None) -> int:
        """How many placeholders an encoder-decoder's answer must begin with under an adapter: as many, for a prefix."""
        virtual = None if adapter is None or self.anatomy.encoder is None else self.virtual_tokens.get(adapter)
        return 0 if virtual is None or virtual.prefix is None else virtual.count

    def hidden(self, batch: Batch, adapters: Adapters = None, draws: Draws | None = None) -> Tensor:
        """The hidden states after the final norm, shape (B, T, D)."""
        return self._hidden(batch, self._call(batch, adapters, draws))

    def _call(self, batch: Batch, adapters: Adapters, draws: Draws | None = None) -> Call:
        """The call that computes a batch, with what its adapters ask for."""
        call = call_of_batch(batch, adapters, draws)
        if not self._edits_in(call):
            return call
        return replace(call, prompt_N=prompts_of_batch(batch, whole=self.anatomy.family.kind == "encoder"))

    def _edits_in(self, call: Call) -> bool:
        """Whether a run's adapter changes the residual stream: of an encoder-decoder, the encoder's."""
        holds_prompts = call.is_source or self.anatomy.encoder is None
        return holds_prompts and any(run.adapter in self.edits for run in call.runs)

    def _hidden(self, batch: Batch, call: Call) -> Tensor:
        if self.trunk_cache is None:
            return self._whole(batch, call)
        held = self.trunk_cache.read(batch)
        if held is not None:
            return self._above(batch, call, held)
        call = call.noting()
        hidden_BTD = self._whole(batch, call)
        self.trunk_cache.write(batch, call.noted)
        return hidden_BTD

    def _whole(self, batch: Batch, call: Call) -> Tensor:
        """The hidden states after the final norm, all computed, shape (B, T, D)."""
        inputs = self._inputs(batch)
        if batch.sources is None:
            return self._trunk(call, **inputs)
        assert call.source is not None
        read = self._encoded(batch.sources, call.source)
        return self._trunk(replace(call, source=read.call), **inputs, **read.inputs)

    def _encoded(self, sources: Sources, call: Call) -> Encoded:
        sides = self._sides_of(call)
        if call.tapped is None and any(side.taps.source for side in sides.values()):
            call = replace(call, tapped={})
        if self._edits_in(call):
            call = replace(call, prompt_N=prompts_of_rows(sources.mask_BS))
        call = self._adapted(call, sources.positions_BS.reshape(-1), sources.mask_BS)
        with torch.no_grad() if all(run.adapter in sides for run in call.runs) else nullcontext():
            return encoded(self.hf, self.anatomy, self.virtual_tokens, sources, call, self.fast.norm)

    @property
    def _tells_token_types(self) -> bool:
        """Whether the model has an embedding for the tokens of a second text."""
        count = config_number(self.hf.config, self.anatomy.family.token_types_key)
        return count is not None and count > 1

    def _above(self, batch: Batch, call: Call, held: Tapped) -> Tensor:
        """What `_whole` gives, begun with states that are held from before."""
        sides, inputs, held = self._sides_of(call), self._inputs(batch), held.to(self.dtype)
        mask = {} if batch.sources is None else {"encoder_attention_mask": batch.sources.mask_BS}
        with calling(call.holding(held)):
            of_sides = {name: side(held.own, {**inputs, **mask}) for name, side in sides.items()}
        if sides and all(run.adapter in sides for run in call.runs):
            return combined(next(iter(of_sides.values())), call, of_sides)
        return combined(self._base_above(batch, call, held, inputs), call, of_sides)

    def _base_above(self, batch: Batch, call: Call, held: Tapped, inputs: dict[str, Any]) -> Tensor:
        """What `_base` gives, begun with states that are held; an encoder computes only what some layer then reads."""
        entering = highest(held.own)
        reads_encoder = entering is None or entering[0] < len(self.anatomy.answering)
        if batch.sources is not None and reads_encoder:
            assert call.source is not None
            read = self._encoded(batch.sources, replace(call.source, entering=highest(held.source)))
            call, inputs = replace(call, source=read.call), {**inputs, **read.inputs}
        return self._base(replace(call, entering=entering), inputs)

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
        with calling(replace(call, watched=None)):  # what is watched is the base's attention
            of_sides = {name: side(tapped, inputs) for name, side in sides.items()}
        return combined(hidden_BTD, call, of_sides)

    def _base(self, call: Call, inputs: dict[str, Any]) -> Tensor:
        positions_N = inputs["position_ids"].reshape(-1)
        call = self._adapted(call, positions_N, inputs.get("attention_mask"))
        read_mask_BS = inputs.get("encoder_attention_mask")
        if read_mask_BS is not None:
            across = gated_prefixes(self.virtual_tokens, call.runs, None, positions_N, read_mask_BS)
            call = replace(call, source_gated=across)
        own = self._placed(
            {**inputs, "position_ids": shown_positions(self.virtual_tokens, call.runs, inputs["position_ids"])}
        )
        return last_states(self.hf, self.anatomy, self.virtual_tokens, call, own, positions_N, self.fast.norm)

    def _adapted(self, call: Call, positions_N: Tensor, mask_BL: Tensor | None) -> Call:
        """The call with what its adapters change in the residual stream, and the gates of their prefixes in its stack."""
        edits = placed_edits(self.edits, call, positions_N, self.num_virtual)
        gated = gated_prefixes(self.virtual_tokens, call.runs, call.segments, positions_N, mask_BL)
        return replace(call, gated=gated, edits=edits)

    def _inputs(self, batch: Batch) -> dict[str, Any]:
        """What the trunk is called with."""
        inputs: dict[str, Any] = {
            "input_ids": batch.tokens_BT,
            "position_ids": batch.positions_BT,
            "attention_mask": batch.mask_BT,
            "use_cache": False,
        }
        if batch.types_BT is not None and self._tells_token_types:
            inputs["token_type_ids"] = batch.types_BT
        return inputs

    def _placed(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The trunk's inputs with positions as the model counts them."""
        first = self.first_position
        return {**inputs, "position_ids": inputs["position_ids"] + first} if first else inputs

    def add_side(self, name: str, side: Side) -> None:
        """Let a side network make the hidden states of an adapter's tokens."""
        if not self.sides:
            tap_layers(self.hf, self.anatomy)
        self.sides[name] = side

    def add_virtual_tokens(self, name: str, virtual: VirtualTokens) -> None:
        """Put an adapter's virtual tokens before every document."""
        takes_all = all(known.takes_positions for known in self.virtual_tokens.values())
        if self.anatomy.encoder is not None and takes_all and not virtual.takes_positions:
            leave_positions(self.hf, self.anatomy)
        self.virtual_tokens[name] = virtual

    def gate_prefix(self, name: str, gate: Gate) -> None:
        """Let each token take a share of an adapter's prefix."""
        if all(virtual.gate is None for virtual in self.virtual_tokens.values()):
            note_shares(self.hf, self.anatomy)
        self.virtual_tokens[name] = replace(self.virtual_tokens[name], gate=gate)

    def add_edit(self, name: str, edit: StreamEdit) -> None:
        """Let an adapter change what layers give at tokens of the prompts; an encoder-decoder's are its sources."""
        if not self.edits:
            edit_layers(self.hf, self.anatomy)
        self.edits[name] = edit

    def final_norm(self, hidden_BTD: Tensor) -> Tensor:
        """The base's final norm; the states as they are where it has none."""
        if self.anatomy.final_norm is None:
            return hidden_BTD
        normed_BTD: Tensor = self.hf.get_submodule(self.anatomy.final_norm)(hidden_BTD)
        return normed_BTD

    def forward(self, batch: Batch, adapters: Adapters = None, draws: Draws | None = None) -> Outputs:
        """The states at the batch's targets, and what the head says of them where it is asked.

        adapters: None is the base model; a name serves all documents; a tuple names one for each segment.
        draws: the address of this step's dropout; None drops nothing.
        """
        call = self._call(batch, adapters, draws)
        return self._outputs(batch, call, self._hidden(batch, call))

    def forward_each(self, batch: Batch, adapters: tuple[str, ...], draws: Draws | None = None) -> dict[str, Outputs]:
        """What `forward` gives for the whole batch under each of several adapters.

        The base runs once for all side networks; any other adapter takes a pass of its own.
        """
        tapped: Tapped | None = None
        each = {}
        for name in adapters:
            call = self._call(batch, name, draws)
            if name not in self.sides:
                each[name] = self._outputs(batch, call, self._hidden(batch, call))
                continue
            tapped = self._tapped(batch) if tapped is None else tapped
            each[name] = self._outputs(batch, call, self._above(batch, call, tapped))
        return each

    @torch.no_grad()
    def _tapped(self, batch: Batch) -> Tapped:
        """What the base's layers give for a batch; of held states those that are held."""
        held = None if self.trunk_cache is None else self.trunk_cache.read(batch)
        if held is not None:
            return held
        call = call_of_batch(batch, None, None).noting()
        self._whole(batch, call)
        if self.trunk_cache is not None:
            self.trunk_cache.write(batch, call.noted)
        return call.noted

    def _outputs(self, batch: Batch, call: Call, hidden_BTD: Tensor) -> Outputs:
        """The states at the batch's targets, for the head to speak of."""
        source_N = read_tokens(self.virtual_tokens, call.runs, batch.targets.source_N)
        if self.anatomy.reads_mean:
            hidden_ND = row_means(hidden_BTD, self._own_tokens(batch, call), source_N)
        else:
            hidden_ND = hidden_BTD.flatten(0, 1).index_select(0, source_N)
        return Outputs(hidden_ND, batch.targets, HeadCall(self.hf, self.anatomy, call.at(source_N), self.fast.head))

    def _own_tokens(self, batch: Batch, call: Call) -> Tensor:
        """Which tokens of a padded batch are of a text itself, and no virtual ones before it, shape (B, T)."""
        assert batch.mask_BT is not None, "what is not packed has a mask"
        position_N, own_N = batch.positions_BT.reshape(-1), batch.mask_BT.reshape(-1).bool().clone()
        for run in call.runs:
            own_N[run.start : run.stop] &= position_N[run.start : run.stop] >= self.num_virtual(run.adapter)
        return own_N.view(batch.mask_BT.shape)

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
        self._hidden(batch, replace(self._call(batch, adapters), watched=watched))
        return torch.cat(watched)

    @torch.no_grad()
    def attention_states(self, batch: Batch) -> list[tuple[Tensor, Tensor]]:
        """The keys and values that the base has at each place of attention, each (B, K, T, E).

        In an encoder-decoder: first those of the encoder, then the decoder's own, then those of its cross-attention.
        """
        call = call_of_batch(batch, None, None)
        source = None if call.source is None else replace(call.source, states={})
        call = replace(call, source=source, states={})
        self._hidden(batch, call)
        assert call.states is not None
        read = [] if source is None or source.states is None else [source.states[key] for key in sorted(source.states)]
        return [*read, *(call.states[key] for key in sorted(call.states))]

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

        last_B: where each prompt's last token is; a beginning that prompts have in common may be one segment if
        `shares_tokens` says so. Only for models of the packed layout.
        """
        call = Call(segments, (Run(0, tokens_1T.numel(), adapters),))
        if self._edits_in(call):
            call = replace(call, prompt_N=prompts_of_row(segments, self.device))
        with torch.inference_mode():
            hidden_1TD = self._trunk(
                call, input_ids=tokens_1T, position_ids=positions_1T, past_key_values=cache, use_cache=True
            )
            last_BD = hidden_1TD[0, last_B]
        return self._next_logits(last_BD, adapters)

    def keeps_pages(self, adapter: str | None) -> bool:
        """Whether `read` computes an adapter: its layers see a packed row and ask nothing of a cache of their own."""
        virtual = None if adapter is None else self.virtual_tokens.get(adapter)
        is_gated = virtual is not None and virtual.gate is not None
        return self.layout == "packed" and self.anatomy.encoder is None and adapter not in self.sides and not is_gated

    def read(
        self,
        tokens_1T: Tensor,
        positions_1T: Tensor,
        runs: tuple[Run, ...],
        prompt_T: Tensor,
        last_B: Tensor,
        held: HeldKeys,
    ) -> Tensor:
        """fp32 logits of the tokens that follow some tokens of a packed row, shape (B, V); `held` takes the keys.

        The row's tokens may be the next ones of any rows. runs: the adapters over them, which `keeps_pages` must allow.
        prompt_T: for each token of a prompt the prompt's length, else 0. last_B: which tokens, in rising order.
        """
        call = Call(None, runs, held=held)
        if self._edits_in(call):
            call = replace(call, prompt_N=prompt_T)
        with torch.inference_mode():
            hidden_1TD = self._trunk(call, input_ids=tokens_1T, position_ids=positions_1T, use_cache=False)
            with calling(call.at(last_B)):
                return logits(self.hf, self.anatomy, hidden_1TD[0, last_B]).float()

    def decode(
        self,
        tokens_BT: Tensor,
        positions_BT: Tensor,
        mask_BL: Tensor,
        cache: Cache,
        adapters: str | None = None,
        read: Encoded | None = None,
    ) -> Tensor:
        """fp32 logits of the token that follows each row, shape (B, V); the new keys and values go into `cache`.

        mask_BL covers the cached and the new positions; rows are padded on the left, but for an encoder-decoder, where
        none is padded. read: what its encoder gave for the rows.
        """
        call = Call(None, (Run(0, tokens_BT.numel(), adapters),))
        if cache.get_seq_length() == 0 and self._edits_in(call):
            call = replace(call, prompt_N=prompts_of_rows(mask_BL))
        if read is not None and cache.get_seq_length() == 0:  # else the cache holds what the layers made of it
            call = replace(call, source=read.call)
        with torch.inference_mode():
            hidden_BTD = self._trunk(
                call,
                input_ids=tokens_BT,
                position_ids=positions_BT,
                attention_mask=mask_BL,
                past_key_values=cache,
                use_cache=True,
                **({} if read is None else read.inputs),
            )
            last_BD = hidden_BTD[:, -1]
        return self._next_logits(last_BD, adapters)

    @torch.inference_mode()
    def encode(self, sources: Sources, adapters: str | None = None) -> Encoded:
        """What the encoder of an encoder-decoder gives for sources, for `decode` to read."""
        runs = (Run(0, sources.tokens_BS.numel(), adapters),)
        return self._encoded(sources, Call(None, runs, is_source=True))

    def _next_logits(self, last_BD: Tensor, adapters: str | None) -> Tensor:
        with torch.inference_mode(), calling(Call(None, (Run(0, len(last_BD), adapters),))):
            return logits(self.hf, self.anatomy, last_BD).float()

    def checkpoint_layers(self) -> None:
        """From now on, recompute every layer in the backward pass rather than keep what is inside it."""
        recompute_layers(self.hf, self.anatomy)
