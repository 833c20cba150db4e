"""AdapterFusion: the formula, the frozen adapters, the files that hold them, and parity with the `adapters` library."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from methods.beside import NORM_AFTER, Added, dense, reference_logprobs, sum_norm
from methods.golden_adapters import GOLDEN, golden_logits, golden_model, logits
from models.rows import batch_of
from models.tiny import NAMES, tiny_model
from models.tuned import LENGTHS, logprobs, quiet, randomize
from near import assert_all_near, assert_apart, assert_near
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor

from luthier.errors import LuthierError, RecipeError
from luthier.methods import AdapterFusion, AdapterMethod, Compacter, Houlsby, Parallel, Pfeiffer
from luthier.methods.adapter_fusion import FusionAttachment, FusionBranch
from luthier.methods.bottleneck import BottleneckMethod
from luthier.methods.contract import Attachment
from luthier.models.anatomy import LayerAnatomy
from luthier.models.language_model import LanguageModel


def trained(folder: Path, name: str, *methods: AdapterMethod) -> tuple[str, ...]:
    """Folders with a random adapter of each method."""
    paths = []
    for index, method in enumerate(methods):
        attachment = method.attach(tiny_model(name), "default", seed=index)
        for number, tensor in enumerate(attachment.trainables.values()):
            draw = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(100 * index + number))
            tensor.data.copy_(draw * 0.3)
        path = folder / f"{name}-{index}"
        path.mkdir()
        attachment.write(path, quiet)
        paths.append(str(path))
    return tuple(paths)


def fused(folder: Path, name: str, *methods: BottleneckMethod) -> tuple[LanguageModel, FusionAttachment]:
    """A tiny model with a random fusion of random adapters."""
    model = tiny_model(name)
    attachment = AdapterFusion(adapters=trained(folder, name, *methods)).attach(model, "default", seed=0)
    assert isinstance(attachment, FusionAttachment)
    randomize(attachment, 0.4)
    return model, attachment


def mixture(attachment: FusionAttachment, place: str, read: Tensor, given: list[Tensor]) -> Tensor:
    """Σ α V z, adapter by adapter, as the paper writes it."""
    weights = attachment.trainables
    value = weights[f"{place}.value.weight"].detach()
    if len(given) == 1:
        assert f"{place}.query.weight" not in weights
        return given[0] @ value.T
    query, key = (weights[f"{place}.{part}.weight"].detach() for part in ("query", "key"))
    scores = torch.stack([((read @ query.T) * (each @ key.T)).sum(-1) for each in given])
    return sum(share[..., None] * (each @ value.T) for share, each in zip(scores.softmax(0), given, strict=True))  # type: ignore[return-value]


def after_feedforward(
    attachment: FusionAttachment, name: str, layer: LayerAnatomy, methods: Sequence[BottleneckMethod]
) -> Added:
    """What a fusion adds after a layer's feed-forward, from r and u."""
    place, norm = layer.feedforward_post_norm or layer.down, sum_norm(name, layer.index)
    parts = [
        dense(part, place, method.activation, method.scale)
        for part, method in zip(attachment.parts, methods, strict=True)
    ]

    def added(r: Tensor, u: Tensor) -> Tensor:
        read = [
            norm(r + u) if method.kind == "pfeiffer" else r if method.kind == "parallel" else u for method in methods
        ]
        return mixture(attachment, place, read[-1], [f(z) for f, z in zip(parts, read, strict=True)])

    return added


@pytest.mark.parametrize("name", NAMES)
def test_pfeiffer_adapters_are_mixed_by_what_the_residual_sum_asks_for(name: str, tmp_path: Path) -> None:
    methods = (Pfeiffer(width=5), Pfeiffer(width=3, activation="gelu", scale=1.5))
    model, attachment = fused(tmp_path, name, *methods)
    feedforward = {layer.index: after_feedforward(attachment, name, layer, methods) for layer in model.anatomy.layers}
    expected = reference_logprobs(name, {}, feedforward)
    assert_apart(logprobs(model, None), expected)
    assert_near(logprobs(model), expected)


@pytest.mark.parametrize("last", ["houlsby", "parallel", "pfeiffer"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "olmo2", NORM_AFTER, "granite"])
def test_adapters_of_several_kinds_are_mixed_where_they_stand_and_the_last_one_asks(
    name: str, last: str, tmp_path: Path
) -> None:
    methods = sorted((Houlsby(width=4), Parallel(width=5), Pfeiffer(width=3)), key=lambda method: method.kind == last)
    model, attachment = fused(tmp_path, name, *methods)
    serial = next(part for part, method in zip(attachment.parts, methods, strict=True) if method.kind == "houlsby")
    attention, feedforward = {}, {}
    for layer in model.anatomy.layers:
        place = layer.attention_post_norm or layer.attention_out
        f = dense(serial, place, "gelu", 1.0)
        attention[layer.index] = lambda r, u, f=f, place=place: mixture(attachment, place, u, [f(u)])
        feedforward[layer.index] = after_feedforward(attachment, name, layer, methods)
    assert_near(logprobs(model), reference_logprobs(name, attention, feedforward))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_it_computes_what_the_adapters_library_does(name: str) -> None:
    """Pfeiffer adapters on Llama, Houlsby adapters on GPT-2. The library's bias of the key is random, and cancels."""
    folder = GOLDEN / name / "fusion"
    model = golden_model(name)
    attachment = AdapterFusion(adapters=(str(folder / "one"), str(folder / "two"))).attach(model, "default", seed=0)
    theirs = load_file(folder / "model_adapter_fusion.safetensors")
    for layer in model.anatomy.layers:
        for place, site in ((layer.attention_out, "attention_adapters"), (layer.down, "output_adapters")):
            for part in ("query", "key", "value"):
                ours = attachment.trainables.get(f"{place}.{part}.weight")
                if ours is not None:
                    key = f"{layer.name}.{site}.adapter_fusion_layer.one,two.{part}.weight"
                    ours.data.copy_(theirs.pop(key))
    assert all(key.endswith(".bias") for key in theirs)
    tokens, expected = golden_logits(folder)
    assert_near(logits(model, tokens), expected)


def test_the_shares_of_each_token_sum_to_one_and_one_adapter_has_all(tmp_path: Path) -> None:
    _, attachment = fused(tmp_path, "llama", Pfeiffer(width=5), Pfeiffer(width=3), Pfeiffer(width=2))
    branch = next(branch for branch in attachment.branches.values() if isinstance(branch, FusionBranch))
    draw = torch.Generator().manual_seed(1)
    read, given = torch.randn(4, 32, generator=draw), torch.randn(4, 3, 32, generator=draw)
    assert_near(branch.shares(read, given).sum(-1), torch.ones(4))
    alone = FusionBranch(branch.adapters[:1], draw, torch.device("cpu"))
    assert list(alone.tensors) == ["value.weight"]
    assert_near(alone.mixed(read, given[:, :1]), given[:, 0], 1e-4)


def test_it_begins_as_one_adapter_is_and_as_the_mean_of_several(tmp_path: Path) -> None:
    (path,) = trained(tmp_path, "llama", Pfeiffer(width=5))
    model, alone = tiny_model("llama"), tiny_model("llama")
    Pfeiffer(begin_from=path).attach(alone, "default", seed=0)
    attachment = AdapterFusion(adapters=(path, path)).attach(model, "default", seed=0)
    assert_near(logprobs(model), logprobs(alone), 1e-4)
    for key, tensor in attachment.trainables.items():
        if key.endswith("value.weight"):
            beside = tensor.detach() - torch.eye(32)
            assert 0 < float(beside.abs().max()) <= 1.01e-6
        else:
            assert 0.015 < float(tensor.detach().std()) < 0.025


def test_the_count_is_three_squares_of_the_width_a_place(tmp_path: Path) -> None:
    for index, (method, places) in enumerate(((Pfeiffer(width=5), 2), (Houlsby(width=4), 4))):
        (tmp_path / str(index)).mkdir()
        _, attachment = fused(tmp_path / str(index), "llama", method, method)
        assert attachment.num_trainable == places * 3 * 32**2


def test_the_penalty_is_the_values_distance_from_the_identity(tmp_path: Path) -> None:
    paths = trained(tmp_path, "llama", Pfeiffer(width=5))
    attachment = AdapterFusion(adapters=paths, regularization=0.5).attach(tiny_model("llama"), "default", seed=0)
    randomize(attachment, 0.4)
    values = [tensor.detach() for key, tensor in attachment.trainables.items() if key.endswith("value.weight")]
    assert len(values) == 2
    penalty = attachment.extra_loss()
    assert penalty is not None
    assert_near(penalty, 0.5 * torch.stack([((v - torch.eye(32)) ** 2).sum() for v in values]).sum())


def test_the_fused_adapters_stay_as_they_are_and_stay_usable_alone(tmp_path: Path) -> None:
    methods = (Houlsby(width=4), Pfeiffer(width=3))
    model, attachment = fused(tmp_path, "llama", *methods)
    assert not any(tensor.requires_grad for part in attachment.parts for tensor in part.trainables.values())
    for index, method in enumerate(methods):
        alone = tiny_model("llama")
        type(method)(begin_from=str(tmp_path / f"llama-{index}")).attach(alone, "default", seed=0)
        assert_near(logprobs(model, f"default:{index}"), logprobs(alone), 1e-6)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_its_folder_needs_no_other_run_and_holds_each_adapter_whole(name: str, tmp_path: Path) -> None:
    methods = (Houlsby(width=4), Parallel(width=3))
    model, attachment = fused(tmp_path, name, *methods)
    folder = tmp_path / "written"
    folder.mkdir()
    attachment.write(folder, quiet)
    for index in range(2):
        (tmp_path / f"{name}-{index}").rename(tmp_path / f"gone-{index}")
    moved = folder.rename(tmp_path / "moved")
    again = tiny_model(name)
    AdapterFusion(begin_from=str(moved)).attach(again, "default", seed=3)
    assert_near(logprobs(again), logprobs(model), 1e-6)
    assert str(tmp_path) not in (moved / "luthier_adapter.json").read_text()
    alone = tiny_model(name)
    Parallel(begin_from=str(moved / "fused" / "1")).attach(alone, "default", seed=0)
    assert_near(logprobs(alone), logprobs(model, "default:1"), 1e-6)


def test_a_checkpoint_brings_back_the_adapters_that_the_run_began_with(tmp_path: Path) -> None:
    model, attachment = fused(tmp_path, "llama", Pfeiffer(width=5), Pfeiffer(width=3))
    before = logprobs(model)
    state = {name: tensor.clone() for name, tensor in attachment.state().items()}
    for part in attachment.parts:
        for tensor in part.trainables.values():
            tensor.data.mul_(2)
    assert_apart(logprobs(model), before)
    attachment.load_state(state)
    assert_near(logprobs(model), before, 1e-7)


@pytest.mark.parametrize("name", ["llama", NORM_AFTER, "falcon"])
def test_checkpointed_layers_give_the_same_gradients(name: str, tmp_path: Path) -> None:
    paths = trained(tmp_path, name, Pfeiffer(width=5), Houlsby(width=3))
    found = []
    for recomputes in (False, True):
        model = tiny_model(name)
        attachment = AdapterFusion(adapters=paths).attach(model, "default", seed=0)
        randomize(attachment, 0.2)
        if recomputes:
            model.checkpoint_layers()
        logprob = model.forward(batch_of(LENGTHS, model.layout), "default").logprob_N
        found.append(torch.autograd.grad(logprob.sum(), list(attachment.trainables.values())))
    assert_all_near(found[1], found[0], 1e-6)


def test_a_fusion_of_nothing_is_refused() -> None:
    with pytest.raises(ValidationError, match="nothing to fuse; name finished runs"):
        AdapterFusion()


def test_only_adapters_of_the_three_kinds_can_be_fused(tmp_path: Path) -> None:
    def attach(*adapters: str) -> Attachment:
        return AdapterFusion(adapters=adapters).attach(tiny_model("llama"), "default", seed=0)

    paths = trained(tmp_path, "llama", Compacter(width=8))
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    other = trained(tmp_path / "other", "gemma2", Compacter(width=8))
    for given, error in (
        (paths, RecipeError),
        (other, RecipeError),
        ((str(tmp_path / "empty"),), LuthierError),
    ):
        with pytest.raises(error) as caught:
            attach(*given)
        assert caught.value.mend
        assert caught.value.field == "method.adapters" or caught.value.file is not None


def test_adapters_beside_from_are_refused() -> None:
    with pytest.raises(ValidationError, match="brings its own"):
        AdapterFusion(begin_from="a", adapters=("b",))
