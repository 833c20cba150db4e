"""Later epochs begin above the frozen layers: the same losses, and no work below."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from models.rows import batch_of
from models.tiny import tiny_model
from models.tuned import LENGTHS, randomize
from near import assert_near
from tiny_runs import begin, recipe_values, write_rows

from luthier.methods import AttentionFusion, Full, Ladder, LeTS, LoRA, LoReFT, Method
from luthier.models.trunk import DTYPES, TrunkCache

METHODS: tuple[tuple[str, Method], ...] = (
    ("lora in the upper layer", LoRA(rank=2, layers=(1,))),
    ("changes of the stream above the upper layer", LoReFT(rank=2, layers=(1,), first=1, last=1)),
    ("upper layer", Full(layers=(1,), train_head=False)),
    ("norm and head alone", Full(layers=(), train_head=True, train_embedding=False)),
    ("attention-fusion", AttentionFusion()),
    ("ladder", Ladder(reduction=2)),
    ("lets", LeTS(width=6, choices=("reuse", "compute"))),
)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "opt", "falcon-new", "gemma2"])
@pytest.mark.parametrize("method", [m for _, m in METHODS], ids=[key for key, _ in METHODS])
def test_with_what_is_kept_the_same_is_computed_and_layers_below_are_not(
    name: str, method: Method, tmp_path: Path
) -> None:
    model = tiny_model(name)
    if isinstance(method, Full) and method.train_head and model.anatomy.is_head_tied:
        pytest.skip("a head that is the embedding does not train alone")
    attachment = method.attach(model, "default", seed=0)
    randomize(attachment)
    batch = batch_of(LENGTHS, model.layout)
    expected = model.forward(batch, attachment.adapter).logprob_N
    assert attachment.taps
    cache = TrunkCache(tmp_path, attachment.taps, 32, torch.float32)
    model.keep_trunk(cache)
    first = model.forward(batch, attachment.adapter).logprob_N
    assert len(cache) == len(LENGTHS)
    computed: list[str] = []
    for layer in model.anatomy.layers[: max(attachment.taps)]:
        linear = model.hf.get_submodule(layer.linears[0])
        linear.register_forward_hook(lambda m, a, out, name=layer.name: computed.append(name))
    again = model.forward(batch, attachment.adapter).logprob_N
    assert computed == []
    assert_near(first, expected, 1e-6)
    assert_near(again, expected, 1e-6)
    gradients = [
        torch.autograd.grad(logprob.sum(), list(attachment.trainables.values()), allow_unused=True)
        for logprob in (first, again)
    ]
    for one, other in zip(*gradients, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert_near(other, one, 1e-5)


def test_documents_are_found_again_in_other_batches(tmp_path: Path) -> None:
    model = tiny_model("llama")
    AttentionFusion().attach(model, "default", seed=0)
    cache = TrunkCache(tmp_path, (0, 1, 2), 32, torch.float32)
    model.keep_trunk(cache)
    for lengths in (LENGTHS, (7, 12), (7,)):
        model.forward(batch_of(lengths, model.layout), "default")
    assert len(cache) == len(LENGTHS)
    assert cache.read(batch_of((7, 12, 5), model.layout)) is None


def test_half_precision_takes_half_the_disk_and_rounds(tmp_path: Path) -> None:
    model = tiny_model("llama")
    AttentionFusion().attach(model, "default", seed=0)
    batch = batch_of(LENGTHS, model.layout)
    before = model.forward(batch, "default").logprob_N
    sizes = {}
    for name, dtype in DTYPES.items():
        model.trunk_cache = None
        model.keep_trunk(TrunkCache(tmp_path / name, (0, 1, 2), 32, dtype))
        model.forward(batch, "default")
        assert_near(model.forward(batch, "default").logprob_N, before, 1e-6 if name == "fp32" else 2e-2)
        sizes[name] = (tmp_path / name / "rows.bin").stat().st_size
    assert sizes["fp32"] == 2 * sizes["bf16"] == sum(LENGTHS) * 3 * 32 * 4


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
    rows = write_rows(tmp_path / "rows.jsonl", 10)
    losses, words = {}, {}
    for name, gigabytes in (("kept", 1), ("anew", 0)):
        said: list[str] = []
        training = {"steps": None, "epochs": 3, "trunk_cache_gb": gigabytes}
        values = recipe_values(tiny_model, rows, method=method, training=training)
        begin(values, tmp_path / name, announce=said.append)
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        losses[name], words[name] = [json.loads(line)["loss"] for line in lines], " ".join(said)
        assert not (tmp_path / name / "trunk").exists()
    assert losses["kept"] == pytest.approx(losses["anew"], rel=1e-5)
    assert "Kept on disk" in words["kept"]
    assert "Kept on disk" not in words["anew"]


def test_what_would_take_too_much_disk_is_not_kept_and_said(tiny_model: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 10)
    said: list[str] = []
    training = {"steps": None, "epochs": 2, "trunk_cache_gb": 1e-7}
    method = {"kind": "attention-fusion", "rank": None}
    begin(recipe_values(tiny_model, rows, method=method, training=training), tmp_path / "run", announce=said.append)
    assert any("more than training.trunk_cache_gb" in sentence for sentence in said)
