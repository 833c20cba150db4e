"""Later epochs begin above the frozen layers: the same losses and gradients, and no work below."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models.rows import answers_of, batch_of, random_rows, with_sources
from models.tiny import ENCODER_DECODERS, ENCODERS, tiny_model
from models.tuned import LENGTHS, randomize, usual_batch
from near import assert_all_near, assert_apart, assert_near
from tiny_model import write_tiny_encoder_decoder
from tiny_runs import Cut, begin, course, cut_after, go_on, outcome, recipe_values, write_rows
from torch import Tensor

from luthier.data.packing import collate
from luthier.methods import (
    AttentionFusion,
    Full,
    Ladder,
    LeTS,
    LNTuning,
    LoRA,
    LoReFT,
    Method,
    Pfeiffer,
    Stack,
    TopLayers,
)
from luthier.methods.contract import Attachment
from luthier.models.language_model import LanguageModel
from luthier.models.taps import Tapped, Taps
from luthier.models.trunk import DTYPES, TrunkCache
from luthier.training.trunk import kept_bytes
from luthier.types import Batch, Example, Part

METHODS: tuple[tuple[str, Method], ...] = (
    ("lora in the upper layer", LoRA(rank=2, layers=(1,))),
    ("changes of the stream above the upper layer", LoReFT(rank=2, layers=(1,), first=1, last=1)),
    ("upper layer", Full(layers=(1,), train_head=False)),
    ("norm and head alone", Full(layers=(), train_head=True, train_embedding=False)),
    ("attention-fusion", AttentionFusion()),
    ("a network beside the base as a part", Stack(parts=(AttentionFusion(),))),
    ("ladder", Ladder(reduction=2)),
    ("lets", LeTS(width=6, choices=("reuse", "compute"))),
)
OF_TWO_STACKS: tuple[tuple[str, Method], ...] = (
    ("ladder", Ladder(reduction=2)),
    ("ladder beside some layers", Ladder(reduction=2, every=2)),
    ("attention-fusion", AttentionFusion()),
    ("lets", LeTS(width=6, choices=("compute", "reuse", "compute"))),
    ("the decoder's last layer", TopLayers(num_layers=1)),
    ("all of the decoder's layers", TopLayers(num_layers=3)),
    ("lora above the decoder's first layer", LoRA(rank=2, layers=(3, 4))),
    ("what reads the source", LoRA(rank=2, targets=("role:cross_key", "role:cross_value"), layers=(4,))),
    ("bottlenecks after the last feed-forward", Pfeiffer(width=4, layers=(4,))),
    ("lora in the upper layers of both", LoRA(rank=2, layers=(1, 4))),
    ("lora at the head", LoRA(rank=2, targets=("lm_head",))),
)


def watched_layers(model: LanguageModel) -> list[int]:
    """From now on, the layers of which some linear map computes, by index."""
    computed: list[int] = []
    for layer in model.anatomy.layers:
        for place in layer.linears:
            module = model.hf.get_submodule(place)
            module.register_forward_hook(lambda m, a, output, index=layer.index: computed.append(index))
    return computed


def loss_and_gradients(model: LanguageModel, attachment: Attachment, batch: Batch) -> tuple[Tensor, list[Tensor]]:
    """Log-probabilities, and the gradient of their sum by every trained tensor (zero where it has no part in it)."""
    logprob_N = model.forward(batch, attachment.adapter).logprob_N
    trained = list(attachment.trainables.values())
    return logprob_N.detach(), list(
        torch.autograd.grad(logprob_N.sum(), trained, allow_unused=True, materialize_grads=True)
    )


def check_later_epochs(model: LanguageModel, attachment: Attachment, folder: Path) -> None:
    """With what is kept, all is as without in the first and in a later epoch, which computes no layer below the trained."""
    randomize(attachment)
    batch = usual_batch(model, attachment.adapter)
    expected, gradients = loss_and_gradients(model, attachment, batch)
    assert any(float(gradient.abs().max()) > 0 for gradient in gradients)
    model.keep_trunk(TrunkCache(folder, attachment.taps, 32, torch.float32))
    computed = watched_layers(model)
    lowest = len(model.anatomy.layers) if model.sides else attachment.lowest_layer
    assert lowest is not None
    for epoch in range(3):
        computed.clear()
        logprob_N, again = loss_and_gradients(model, attachment, batch)
        assert_near(logprob_N, expected, 1e-6)
        assert_all_near(again, gradients, 1e-5)
        first = 0 if epoch == 0 else lowest
        assert sorted(set(computed)) == list(range(first, len(model.anatomy.layers)))


OF_ONE_STACK = tuple(
    pytest.param(name, method, id=f"{key}-{name}")
    for key, method in METHODS
    for name in ("llama", "gpt2", "gpt_neox", "opt", "falcon-new", "gemma2", "bloom", *ENCODERS)
    if key != "lets" or name not in ("deberta", "modernbert", "modernbert-mean")  # where it is refused
)


@pytest.mark.parametrize(("name", "method"), OF_ONE_STACK)
def test_with_what_is_kept_the_same_is_computed_and_layers_below_are_not(
    name: str, method: Method, tmp_path: Path
) -> None:
    model = tiny_model(name)
    if isinstance(method, Full) and method.train_head and model.anatomy.is_head_tied:
        pytest.skip("a head that is the embedding does not train alone")
    check_later_epochs(model, method.attach(model, "default", seed=0), tmp_path)


@pytest.mark.parametrize("name", ENCODER_DECODERS)
@pytest.mark.parametrize("method", [m for _, m in OF_TWO_STACKS], ids=[key for key, _ in OF_TWO_STACKS])
def test_of_two_stacks_too_and_no_layer_of_either_below_what_trains(name: str, method: Method, tmp_path: Path) -> None:
    model = tiny_model(name)
    check_later_epochs(model, method.attach(model, "default", seed=0), tmp_path)


@pytest.mark.parametrize(("stack", "lowest"), [("encoder", 2), ("decoder", 5)])
def test_a_stacks_last_norm_trains_on_what_is_kept_in_front_of_it(stack: str, lowest: int, tmp_path: Path) -> None:
    model = tiny_model("t5")
    attachment = LNTuning(targets=(f"{stack}.final_layer_norm",)).attach(model, "default", seed=0)
    assert attachment.lowest_layer == lowest
    check_later_epochs(model, attachment, tmp_path)


@pytest.mark.parametrize("name", ENCODER_DECODERS)
@pytest.mark.parametrize("method", [Ladder(reduction=2), AttentionFusion()], ids=lambda method: method.kind)
def test_beside_what_is_kept_neither_stack_is_entered(name: str, method: Method, tmp_path: Path) -> None:
    model = tiny_model(name)
    attachment = method.attach(model, "default", seed=0)
    model.keep_trunk(TrunkCache(tmp_path, attachment.taps, 32, torch.float32))
    batch = usual_batch(model, "default")
    model.forward(batch, "default")
    entered: list[str] = []
    for stack in (model.anatomy.encoder, model.anatomy.trunk):
        assert stack is not None
        model.hf.get_submodule(stack).register_forward_pre_hook(lambda m, a, name=stack: entered.append(name))
    model.forward(batch, "default")
    assert entered == []


@pytest.mark.parametrize("name", ["llama", *ENCODER_DECODERS])
def test_rows_of_the_base_beside_rows_of_a_side_network_are_as_without_what_is_kept(name: str, tmp_path: Path) -> None:
    model = tiny_model(name)
    attachment = Ladder(reduction=2).attach(model, "default", seed=0)
    randomize(attachment, 0.3)
    attachment.trainables["gate"].data.fill_(1.0)
    whose = ("default", None, "default", None)
    batch = usual_batch(model, whose)
    expected = model.forward(batch, whose).logprob_N
    assert_apart(expected, model.forward(batch, "default").logprob_N)
    model.keep_trunk(TrunkCache(tmp_path, attachment.taps, 32, torch.float32))
    computed = watched_layers(model)
    for _ in range(2):
        assert_near(model.forward(batch, whose).logprob_N, expected, 1e-6)
    assert len(computed) == len(model.anatomy.linears)  # those of the first pass


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_layers_that_are_computed_again_in_the_backward_pass_begin_there_too(name: str, tmp_path: Path) -> None:
    model = tiny_model(name)
    attachment = LoRA(rank=2, layers=(3, 4)).attach(model, "default", seed=0)
    model.checkpoint_layers()
    check_later_epochs(model, attachment, tmp_path)


def test_documents_are_found_again_in_other_batches(tmp_path: Path) -> None:
    model = tiny_model("llama")
    AttentionFusion().attach(model, "default", seed=0)
    cache = TrunkCache(tmp_path, Taps((0, 1, 2)), 32, torch.float32)
    model.keep_trunk(cache)
    for lengths in (LENGTHS, (7, 12), (7,)):
        model.forward(batch_of(lengths, model.layout), "default")
    assert len(cache) == len(LENGTHS)
    assert cache.read(batch_of((7, 12, 5), model.layout)) is None


def test_rows_behind_a_beginning_in_common_are_kept_each_as_a_whole(tmp_path: Path) -> None:
    model = tiny_model("llama")
    AttentionFusion().attach(model, "default", seed=0)
    rows = behind_one_beginning(random_rows((9, 12, 10, 11)), 6)
    shared = collate(rows, "packed", 0, shares_prefix=True)
    assert [segment.parent for segment in shared.segments] == [None, 0, 0, 0, 0]
    apart, fewer = collate(rows, "packed", 0), collate(rows[1:3], "packed", 0, shares_prefix=True)
    whole = {id(batch): model.hidden(batch, "default").detach() for batch in (shared, apart, fewer)}
    cache = TrunkCache(tmp_path, Taps((0, 1, 2)), 32, torch.float32)
    model.keep_trunk(cache)
    model.forward(shared, "default")
    assert len(cache) == len(rows)
    for batch in (shared, apart, fewer):
        assert cache.read(batch) is not None
        assert_near(model.hidden(batch, "default"), whole[id(batch)])
    assert cache.read(collate(random_rows((8,)), "packed", 0)) is None


def behind_one_beginning(rows: list[Example], count: int) -> list[Example]:
    """The rows with the first one's first tokens, of which none is learned to go on from."""
    made = []
    for row in rows:
        tokens_T = np.concatenate([rows[0].parts[0].tokens_T[:count], row.parts[0].tokens_T[count:]])
        is_later = row.source_N >= count
        targets = (row.source_N[is_later], row.token_N[is_later], row.weight_N[is_later], row.sample_N[is_later])
        made.append(Example((Part(tokens_T),), *targets, row.document, row.origin))
    return made


def test_a_source_is_found_again_under_any_answer_and_an_answer_only_under_its_source(tmp_path: Path) -> None:
    model = tiny_model("bart")
    cache = TrunkCache(tmp_path, Taps((1,), (0, 2)), 32, torch.float32)
    model.keep_trunk(cache)
    rows = with_sources(random_rows((7, 12)))
    model.forward(collate(rows, "bucketed", 0))
    assert len(cache) == 4
    one_source = [replace(row, source_S=rows[0].source_S) for row in rows]
    together = collate(one_source, "bucketed", 0)
    assert cache.read(together) is None
    model.forward(together)
    assert len(cache) == 5  # the second answer to the first one's source
    held = [cache.read(collate(each, "bucketed", 0)) for each in (one_source, rows)]
    assert held[0] is not None
    assert held[1] is not None
    assert_apart(held[0].own[1][1], held[1].own[1][1])
    assert set(held[0].own) == {1}
    assert set(held[0].source) == {0, 2}


def test_what_other_weights_or_other_layers_gave_is_not_taken(tmp_path: Path) -> None:
    batch = answers_of(LENGTHS)
    assert batch.sources is not None
    shapes = batch.tokens_BT.shape, batch.sources.tokens_BS.shape
    states = Tapped({1: torch.ones(*shapes[0], 32)}, {2: torch.ones(*shapes[1], 32)})
    own = (tmp_path, Taps((1,), (2,)), 32, torch.float32, "these weights")
    TrunkCache(*own).write(batch, states)
    assert TrunkCache(*own).read(batch) is not None
    assert TrunkCache(*own[:4], "those weights").read(batch) is None
    assert TrunkCache(tmp_path, Taps((1,), (1,)), 32, torch.float32, "these weights").read(batch) is None
    assert TrunkCache(tmp_path, Taps((1,), (2,)), 32, torch.bfloat16, "these weights").read(batch) is None


def test_half_precision_takes_half_the_disk_and_rounds(tmp_path: Path) -> None:
    model = tiny_model("llama")
    AttentionFusion().attach(model, "default", seed=0)
    batch = batch_of(LENGTHS, model.layout)
    before = model.forward(batch, "default").logprob_N
    sizes = {}
    for name, dtype in DTYPES.items():
        model.trunk_cache = None
        model.keep_trunk(TrunkCache(tmp_path / name, Taps((0, 1, 2)), 32, dtype))
        model.forward(batch, "default")
        assert_near(model.forward(batch, "default").logprob_N, before, 1e-6 if name == "fp32" else 2e-2)
        sizes[name] = (tmp_path / name / "rows.bin").stat().st_size
    assert sizes["fp32"] == 2 * sizes["bf16"] == sum(LENGTHS) * 3 * 32 * 4


@pytest.mark.parametrize("method", [Ladder(reduction=2), TopLayers(num_layers=1)], ids=lambda method: method.kind)
def test_the_disk_that_is_announced_is_what_sources_and_answers_take(method: Method, tmp_path: Path) -> None:
    model, rows = tiny_model("t5"), with_sources(random_rows(LENGTHS))
    attachment = method.attach(model, "default", seed=0)
    model.keep_trunk(TrunkCache(tmp_path, attachment.taps, 32, torch.bfloat16))
    model.forward(usual_batch(model, attachment.adapter), attachment.adapter)
    own, source = sum(LENGTHS), sum(row.num_source_tokens for row in rows)
    num_states = 4 * own + 3 * source if method.kind == "ladder" else own + source
    announced = kept_bytes(rows, attachment.taps, 32, torch.bfloat16)
    assert announced == num_states * 32 * 2 == (tmp_path / "rows.bin").stat().st_size


@pytest.mark.parametrize(
    "method",
    [
        {"kind": "lora", "layers": [1]},
        {"kind": "full", "rank": None, "layers": [1]},
        {"kind": "attention-fusion", "rank": None},
        {"kind": "lets", "rank": None, "width": 6},
    ],
    ids=lambda method: method["kind"],
)
def test_a_run_with_what_is_kept_has_the_losses_of_one_without(
    method: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    check_runs(tiny_model, method, tmp_path)


@pytest.mark.parametrize(
    "method",
    [
        {"kind": "lora", "layers": [3], "dropout": 0.2},
        {"kind": "top-layers", "rank": None, "num_layers": 1},
        {"kind": "attention-fusion", "rank": None},
        {"kind": "ladder", "rank": None, "reduction": 2},
    ],
    ids=lambda method: method["kind"],
)
@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_so_does_a_run_of_an_encoder_decoder(kind: str, method: dict[str, Any], tmp_path: Path) -> None:
    check_runs(write_tiny_encoder_decoder(tmp_path / kind, kind), method, tmp_path)


def check_runs(model: Path, method: dict[str, Any], folder: Path) -> None:
    """Three epochs with held-out rows, with and without what is kept, have the same losses; nothing stays on the disk."""
    rows, held_out = write_rows(folder / "rows.jsonl", 10), write_rows(folder / "held-out.jsonl", 3, start=40)
    losses, words = {}, {}
    for name, gigabytes in (("kept", 1), ("anew", 0)):
        said: list[str] = []
        training = {"steps": None, "epochs": 3, "trunk_cache_gb": gigabytes, "evaluate_every": 2}
        values = recipe_values(model, rows, method=method, training=training, data={"validation": str(held_out)})
        begin(values, folder / name, announce=said.append)
        metrics = course(folder / name)
        losses[name] = [line[key] for line in metrics for key in ("loss", "validation_loss") if key in line]
        words[name] = " ".join(said)
        assert not (folder / name / "trunk").exists()
    assert losses["kept"] == pytest.approx(losses["anew"], rel=1e-5)
    assert "Kept on disk" in words["kept"]
    assert "Kept on disk" not in words["anew"]


def test_a_run_broken_off_in_its_second_epoch_ends_in_the_same_bits(tmp_path: Path) -> None:
    model, rows = write_tiny_encoder_decoder(tmp_path / "t5"), write_rows(tmp_path / "rows.jsonl", 12)
    values = recipe_values(model, rows, method={"kind": "ladder", "rank": None, "reduction": 2})
    begin(values, tmp_path / "whole")

    with pytest.raises(Cut):
        begin(values, tmp_path / "broken", on_step=cut_after(5))
    assert (tmp_path / "broken" / "trunk").is_dir()
    go_on(tmp_path / "broken")
    assert outcome(tmp_path / "broken") == outcome(tmp_path / "whole")


def test_what_would_take_too_much_disk_is_not_kept_and_said(tiny_model: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 10)
    said: list[str] = []
    training = {"steps": None, "epochs": 2, "trunk_cache_gb": 1e-7}
    method = {"kind": "attention-fusion", "rank": None}
    begin(recipe_values(tiny_model, rows, method=method, training=training), tmp_path / "run", announce=said.append)
    assert any("more than training.trunk_cache_gb" in sentence for sentence in said)
