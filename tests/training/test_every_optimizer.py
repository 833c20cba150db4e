"""What holds for every optimizer, and each against the library that has it."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import bitsandbytes as bnb
import pytest
import torch
from near import assert_near
from torch import Tensor, nn
from transformers.optimization import Adafactor as PlainAdafactor

from luthier.errors import DiskFull
from luthier.methods.contract import Group
from luthier.quantization.blocks import dequantize_blocks
from luthier.quantization.codebooks import dynamic_map
from luthier.store import disk
from luthier.training.flat import FlatTrainables
from luthier.training.optimizers import (
    OPTIMIZERS,
    SGD,
    Adafactor,
    AdamW,
    AdamW8bit,
    GaLore,
    Lion,
    Muon,
    Optimizer,
    OptimizerSettings,
    PagedAdamW,
    PagedAdamW8bit,
    PerTensor,
    optimizer_of,
)
from luthier.training.optimizers.muon import orthogonalized
from luthier.training.optimizers.paged import MappedFiles

SHAPES = {"table": (30, 8), "tall": (96, 64), "wide": (64, 130), "vector": (70,), "cube": (3, 5, 4)}
EXAMPLES: tuple[OptimizerSettings, ...] = (
    AdamW(weight_decay=0.1),
    AdamW8bit(weight_decay=0.1, full_below=64),
    PagedAdamW(weight_decay=0.1),
    PagedAdamW8bit(full_below=64),
    Adafactor(weight_decay=0.1),
    Lion(weight_decay=0.1),
    SGD(momentum=0.9, nesterov=True),
    Muon(weight_decay=0.1),
    GaLore(rank=8, refresh_every=3, scale=1.0),
)
RATES = (0.01, 0.03, 0.02, 0.0, 0.05, 0.01)


def start() -> dict[str, nn.Parameter]:
    """The same tensors each time."""
    generator = torch.Generator().manual_seed(0)
    return {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in SHAPES.items()}


def gradients(step: int) -> dict[str, Tensor]:
    """Random gradients of a step, of sizes that differ from tensor to tensor."""
    generator = torch.Generator().manual_seed(100 + step)
    return {
        name: torch.randn(shape, generator=generator) * 10.0**-index
        for index, (name, shape) in enumerate(SHAPES.items())
    }


def grouped(tensors: dict[str, nn.Parameter]) -> list[Group]:
    """Vectors do not decay; the cube has a rate of its own."""
    return [
        Group({name: tensors[name] for name in ("table", "tall", "wide")}),
        Group({"vector": tensors["vector"]}, decays=False),
        Group({"cube": tensors["cube"]}, lr_factor=16.0),
    ]


def made(settings: OptimizerSettings, folder: Path) -> tuple[dict[str, nn.Parameter], FlatTrainables, Optimizer]:
    """Tensors, and the optimizer over them."""
    tensors = start()
    flat = FlatTrainables(grouped(tensors), workers=1)
    return tensors, flat, optimizer_of(settings, flat, frozenset({"table"}), folder)


def take(flat: FlatTrainables, optimizer: Optimizer, step: int) -> None:
    """One update by a step's gradients."""
    flat.clear_gradients()
    of_step = gradients(step)
    flat.add_gradients(0, [of_step[name].clone() for group in flat.groups for name in group.spans])
    flat.sum_gradients()
    optimizer.step(RATES[step])


def moved(settings: OptimizerSettings, folder: Path, steps: int = len(RATES)) -> dict[str, Tensor]:
    """The tensors after some steps."""
    tensors, flat, optimizer = made(settings, folder)
    for step in range(steps):
        take(flat, optimizer, step)
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def test_every_optimizer_has_an_example() -> None:
    assert [type(settings) for settings in EXAMPLES] == list(OPTIMIZERS)
    assert len({settings.kind for settings in EXAMPLES}) == len(EXAMPLES)


@pytest.mark.parametrize("settings", EXAMPLES, ids=lambda settings: settings.kind)
def test_a_resumed_optimizer_goes_on_with_the_same_bits(settings: OptimizerSettings, tmp_path: Path) -> None:
    whole = moved(settings, tmp_path)
    tensors, flat, optimizer = made(settings, tmp_path)
    for step in range(3):
        take(flat, optimizer, step)
    state = {name: tensor.clone() for name, tensor in optimizer.named_state().items()}
    again, flat_again, other = made(settings, tmp_path)
    flat_again.load({name: tensor.detach() for name, tensor in tensors.items()})
    other.load_state(state)
    for step in range(3, len(RATES)):
        take(flat_again, other, step)
    assert all(torch.equal(again[name], whole[name]) for name in SHAPES)


@pytest.mark.parametrize("settings", EXAMPLES, ids=lambda settings: settings.kind)
def test_its_state_takes_the_bytes_that_its_settings_say(settings: OptimizerSettings, tmp_path: Path) -> None:
    _, flat, optimizer = made(settings, tmp_path)
    take(flat, optimizer, 0)
    said = sum(settings.state_bytes(shape, name == "table") for name, shape in SHAPES.items())
    held = sum(tensor.nbytes for name, tensor in optimizer.named_state().items() if not name.startswith("step."))
    assert held == said


@pytest.mark.parametrize("settings", EXAMPLES, ids=lambda settings: settings.kind)
def test_it_finds_the_lowest_point_of_a_bowl(settings: OptimizerSettings, tmp_path: Path) -> None:
    tensors, flat, optimizer = made(settings, tmp_path)
    first = sum(float(tensor.detach().square().sum()) for tensor in tensors.values())
    for step in range(60):
        flat.clear_gradients()
        flat.add_gradients(0, [tensor.detach().clone() for tensor in flat.tensors])
        flat.sum_gradients()
        optimizer.step(0.05 * (1 - step / 60))
    assert (
        sum(float(tensor.detach().square().sum()) for tensor in tensors.values())
        < (0.9 if isinstance(settings, GaLore) else 0.6) * first
    )


@pytest.mark.parametrize("settings", EXAMPLES, ids=lambda settings: settings.kind)
def test_a_group_of_the_same_tensors_keeps_its_state_and_another_begins_anew(
    settings: OptimizerSettings, tmp_path: Path
) -> None:
    tensors, flat, optimizer = made(settings, tmp_path)
    take(flat, optimizer, 0)
    before = {name: tensor.clone() for name, tensor in optimizer.named_state().items()}
    other = nn.Parameter(torch.zeros(5))
    kept, *_ = grouped(tensors)
    optimizer.exchange([kept, Group({"vector": other}, decays=False)])
    after = optimizer.named_state()
    own = {name for name in before if name.rpartition(".")[2] in ("table", "tall", "wide")}
    assert {name for name in after if name.rpartition(".")[2] in ("table", "tall", "wide")} == own
    assert all(torch.equal(after[name], before[name]) for name in own)
    assert not any(name.endswith((".vector", ".cube")) for name in after)


@pytest.mark.parametrize("settings", EXAMPLES, ids=lambda settings: settings.kind)
def test_decay_takes_its_share_of_what_decays_only(settings: OptimizerSettings, tmp_path: Path) -> None:
    with_decay, without = (
        moved(settings.model_copy(update={"weight_decay": decay}), tmp_path, steps=1) for decay in (0.5, 0.0)
    )
    begun = start()
    for name in SHAPES:
        rate = RATES[0] * (16.0 if name == "cube" else 1.0)
        share = 0.0 if name == "vector" else 0.5 * rate
        assert_near(without[name] - with_decay[name], share * begun[name].detach(), 1e-4 if share else 0)


def by_torch(
    make: Callable[[list[dict[str, Any]]], torch.optim.Optimizer], names: tuple[str, ...]
) -> dict[str, Tensor]:
    """Some tensors after all steps of another library's optimizer; the vector does not decay."""
    tensors = start()
    factors = {name: 16.0 if name == "cube" else 1.0 for name in names}
    groups = [
        {"params": [tensors[name]], "factor": factors[name], **({"weight_decay": 0.0} if name == "vector" else {})}
        for name in names
    ]
    optimizer = make(groups)
    for step, rate in enumerate(RATES):
        for group in optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        for name in names:
            tensors[name].grad = gradients(step)[name]
        optimizer.step()
    return {name: tensors[name].detach() for name in names}


@pytest.mark.parametrize(
    ("settings", "make"),
    [
        (AdamW(weight_decay=0.1), lambda groups: torch.optim.AdamW(groups, weight_decay=0.1)),
        (PagedAdamW(weight_decay=0.1), lambda groups: torch.optim.AdamW(groups, weight_decay=0.1)),
        (SGD(), lambda groups: torch.optim.SGD(groups, lr=0.1)),
        (SGD(momentum=0.9), lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9)),
        (SGD(momentum=0.9, nesterov=True), lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True)),
        (Lion(weight_decay=0.1), lambda groups: bnb.optim.Lion(groups, weight_decay=0.1)),
        (
            Adafactor(weight_decay=0.1),
            lambda groups: PlainAdafactor(
                groups, lr=0.1, weight_decay=0.1, scale_parameter=False, relative_step=False, warmup_init=False
            ),
        ),
    ],
    ids=lambda value: value.kind if isinstance(value, OptimizerSettings) else "",
)
def test_every_number_moves_as_in_the_library_that_has_it(
    settings: OptimizerSettings, make: Callable[[list[dict[str, Any]]], torch.optim.Optimizer], tmp_path: Path
) -> None:
    ours, theirs = moved(settings, tmp_path), by_torch(make, tuple(SHAPES))
    for name in SHAPES:
        assert_near(ours[name], theirs[name], 2e-6)


@pytest.mark.parametrize("steps", [1, len(RATES)])
def test_moments_in_eight_bits_are_those_of_bitsandbytes_within_a_bin(steps: int, tmp_path: Path) -> None:
    settings = AdamW8bit(weight_decay=0.1)
    _, flat, optimizer = made(settings, tmp_path)
    for step in range(steps):
        take(flat, optimizer, step)
    tensors = start()
    names = ("tall", "wide")
    theirs = bnb.optim.AdamW8bit([tensors[name] for name in names], weight_decay=0.1)
    for step, rate in enumerate(RATES[:steps]):
        theirs.param_groups[0]["lr"] = rate
        for name in names:
            tensors[name].grad = gradients(step)[name]
        theirs.step()
    ours = optimizer.named_state()
    for name in names:
        own = theirs.state[tensors[name]]
        for moment, key, signed in (("exp_avg", "1", True), ("exp_avg_sq", "2", False)):
            values = dynamic_map(signed).values_K
            gap = torch.cat([values.diff(), values.diff()[-1:]])  # to the next value; they are in order
            codes, other = ours[f"{moment}.codes.{name}"].long(), own[f"state{key}"].flatten().long()
            if steps == 1:  # they look values up by 65,536 bins of [−1, 1]; later each goes on from its own
                bound = torch.maximum(gap[codes], gap[other]) + 2 / 65535
                assert bool(((values[codes] - values[other]).abs() <= bound).all())
            assert float((codes != other).float().mean()) < 0.05 * steps
            assert_near(ours[f"{moment}.scales.{name}"], own[f"absmax{key}"], 1e-6 if steps == 1 else 2e-2)
        assert_near(tensors_of(flat)[name], tensors[name].detach(), 1e-6 if steps == 1 else 2e-2)


def tensors_of(flat: FlatTrainables) -> dict[str, Tensor]:
    """The trained tensors as they are now."""
    return flat.by_name([group.vector.data for group in flat.groups])


def test_moments_in_eight_bits_stay_near_those_in_fp32(tmp_path: Path) -> None:
    coarse, exact = moved(AdamW8bit(full_below=0), tmp_path), moved(AdamW(), tmp_path)
    for name in SHAPES:
        assert_near(coarse[name] - start()[name].detach(), exact[name] - start()[name].detach(), 0.15)


@pytest.mark.parametrize("count", [4095, 4096])
def test_small_tensors_and_tables_keep_their_moments_whole(count: int) -> None:
    tensor = torch.zeros(count)
    packs = "exp_avg.codes" in AdamW8bit().rule("a", tensor, False).fresh(
        tensor, lambda _, shape, dtype: torch.zeros(shape, dtype=dtype)
    )
    assert packs == (count >= 4096)
    whole = AdamW8bit().rule("a", tensor, True).fresh(tensor, lambda _, shape, dtype: torch.zeros(shape, dtype=dtype))
    assert set(whole) == {"exp_avg", "exp_avg_sq"}


@pytest.mark.parametrize(
    ("paged", "plain"), [(PagedAdamW(), AdamW()), (PagedAdamW8bit(full_below=64), AdamW8bit(full_below=64))]
)
def test_a_state_in_files_changes_no_bit(paged: OptimizerSettings, plain: OptimizerSettings, tmp_path: Path) -> None:
    tensors = start()
    flat = FlatTrainables(grouped(tensors), workers=1)
    optimizer = PerTensor(flat, plain, frozenset({"table"}))
    for step in range(len(RATES)):
        take(flat, optimizer, step)
    in_files = moved(paged, tmp_path)
    assert all(torch.equal(in_files[name], tensors[name]) for name in SHAPES)
    assert list(tmp_path.iterdir()) == [], "the files have no names, so that they go with the process"


@pytest.mark.parametrize("settings", [PagedAdamW(), PagedAdamW8bit(full_below=64)], ids=lambda settings: settings.kind)
def test_a_disk_without_room_for_the_state_ends_the_step_with_the_mend_and_no_weight_of_it_moved(
    settings: OptimizerSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: IO[bytes], num_bytes: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(disk, "reserve", full)
    tensors, flat, optimizer = made(settings, tmp_path)
    with pytest.raises(
        DiskFull, match=rf"The optimizer's exp_avg.*\.table in {tmp_path} could not be written"
    ) as refused:
        take(flat, optimizer, 0)
    assert "adamw-8bit" in refused.value.mend
    assert refused.value.field == "training.optimizer.kind"
    assert all(torch.equal(tensors[name], begun) for name, begun in start().items())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="room is kept by a call of Linux's")
def test_what_is_mapped_of_a_state_has_its_room_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks, from_file = [], torch.from_file

    def looking(path: str, **others: Any) -> Tensor:
        blocks.append(Path(path).stat().st_blocks * 512)
        return from_file(path, **others)

    monkeypatch.setattr(torch, "from_file", looking)
    held = MappedFiles(tmp_path)("exp_avg", (300, 1000), torch.float32)
    assert torch.equal(held, torch.zeros(300, 1000))
    assert blocks[0] >= held.nbytes


@pytest.mark.parametrize("shape", [(64, 64), (96, 32), (32, 130)])
def test_newton_schulz_steps_bring_all_singular_values_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalized(matrix, 5))
    assert bool((values < 1.3).all())
    assert float((values > 0.3).float().mean()) > 0.9, "all but those that were nearly zero"
    u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
    nearest = u @ vt
    cosine = float((orthogonalized(matrix, 5) * nearest).sum() / nearest.norm() / orthogonalized(matrix, 5).norm())
    assert cosine > 0.97


def test_muon_steps_as_torchs_does_on_matrices_and_as_adamw_on_the_rest(tmp_path: Path) -> None:
    ours = moved(Muon(weight_decay=0.1), tmp_path)
    adamw = moved(AdamW(weight_decay=0.1), tmp_path)
    for name in ("table", "vector", "cube"):
        assert_near(ours[name], adamw[name], 1e-6)
    theirs = by_torch(
        lambda groups: torch.optim.Muon(
            groups, lr=0.1, weight_decay=0.1, momentum=0.95, nesterov=True, adjust_lr_fn="match_rms_adamw"
        ),
        ("tall", "wide"),
    )
    for name in ("tall", "wide"):  # they compute the Newton–Schulz steps in bf16
        assert_near(ours[name] - start()[name].detach(), theirs[name] - start()[name].detach(), 0.06)


def test_a_step_of_galore_lies_in_the_leading_directions_of_the_gradient(tmp_path: Path) -> None:
    after = moved(GaLore(rank=8), tmp_path, steps=1)
    for name in ("tall", "wide"):
        move = after[name] - start()[name].detach()
        assert int((torch.linalg.svdvals(move) > 1e-6).sum()) == 8
        u, _, vt = torch.linalg.svd(gradients(0)[name], full_matrices=False)
        inside = move @ vt[:8].t() @ vt[:8] if name == "tall" else u[:, :8] @ u[:, :8].t() @ move
        assert_near(inside, move, 1e-4)


def galore_by_its_formula(name: str, rank: int, refresh_every: int, scale: float, decay: float) -> Tensor:
    """Algorithm 2 of the paper, step by step in fp64: the moments stay as they are where the directions change."""
    weight = start()[name].detach().double()
    first = second = torch.zeros(())
    for step, rate in enumerate(RATES):
        gradient = gradients(step)[name].double()
        gradient = gradient.t() if name == "tall" else gradient
        if step % refresh_every == 0:  # in fp32 as ours: the signs of singular vectors are a matter of rounding
            directions = torch.linalg.svd(gradient.float(), full_matrices=False).U[:, :rank].double()
        projected = directions.t() @ gradient
        first = 0.9 * first + 0.1 * projected
        second = 0.999 * second + 0.001 * projected.square()
        normal = (first / (1 - 0.9 ** (step + 1))) / ((second / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
        back = scale * directions @ normal
        weight = weight - rate * ((back.t() if name == "tall" else back) + decay * weight)
    return weight.float()


@pytest.mark.parametrize(("refresh_every", "decay"), [(2, 0.0), (4, 0.1)])
@pytest.mark.parametrize("name", ["tall", "wide"])
def test_galore_takes_the_steps_of_its_algorithm_across_choices_of_directions(
    name: str, refresh_every: int, decay: float, tmp_path: Path
) -> None:
    settings = GaLore(rank=8, refresh_every=refresh_every, scale=0.25, weight_decay=decay)
    ours, expected = moved(settings, tmp_path)[name], galore_by_its_formula(name, 8, refresh_every, 0.25, decay)
    assert_near(ours, expected, 1e-5)
    begun = start()[name].detach()
    assert_near(ours - begun, expected - begun, 1e-4)
    unchanged = galore_by_its_formula(name, 8, len(RATES), 0.25, decay)
    assert float((unchanged - expected).abs().max()) > 1e-3, "the choice anew can be seen"


def test_galore_s_state_is_directions_and_two_moments_along_them_where_the_rank_is_lower_than_the_matrix_s() -> None:
    state = GaLore(rank=63, refresh_every=1000).state_bytes((64, 130), False)
    assert state == 4 * 63 * (64 + 2 * 130)
    assert GaLore(rank=64).state_bytes((64, 130), False) == 8 * 64 * 130, "nothing to project"


def test_unpacked_zero_codes_are_zeros() -> None:
    for signed in (True, False):
        book = dynamic_map(signed)
        codes = torch.full((300,), int(book.nearest(torch.zeros(1))), dtype=torch.uint8)
        assert bool((dequantize_blocks(codes, torch.ones(2), book, 256) == 0).all())
