"""What holds on a CPU holds on a GPU: the same losses, the same answers, and half precision near them. Skips without one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from methods.examples import EXAMPLES, REFUSED, model_for, ready
from methods.test_every_method import answers, train
from models.tiny import tiny_model
from models.tuned import logprobs, random_lora, randomize, usual_batch
from near import assert_near
from tiny_experts import write_tiny_experts
from tiny_runs import Cut, begin, course, cut_after, go_on, nothing, recipe_values, write_rows
from torch import Tensor
from transformers import AutoConfig

from luthier.generation.engine import Request, generate
from luthier.generation.settings import Sampling
from luthier.methods import LoRA, Method
from luthier.models.language_model import FastModel, LanguageModel
from luthier.ops.attention import AttentionTerms, packed_attention, packed_attention_reference
from luthier.ops.cuda_library import cuda_library
from luthier.ops.spectrum import svd_of
from luthier.planner.alone import trace_all
from luthier.planner.request import imagined_rows, work_of
from luthier.planner.trace import Trace, take_steps
from luthier.quantization.affine import AffineWeight
from luthier.quantization.four_bit import BLOCKS, FourBitKind, quantize_four_bit
from luthier.quantization.gguf_blocks import GGUFWeight
from luthier.quantization.int8 import quantize_int8
from luthier.quantization.mxfp4 import quantize_mxfp4
from luthier.quantization.packed import PackedWeight
from luthier.quantization.with_low_rank import WithLowRank
from luthier.recipe import make_recipe
from luthier.training.optimizers import OPTIMIZERS, OptimizerSettings
from luthier.training.optimizers.paged import PinnedMemory
from luthier.types import Segment

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")

PLACES = [
    pytest.param(method, name, id=f"{method.kind}-{name}")
    for method in EXAMPLES
    for name in ("llama", "gemma2", "gpt2", "falcon-new", "bert", "deberta", "modernbert-mean", "bart")
    if (method.kind, name) not in REFUSED
]


def on_gpu(name: str, dtype: torch.dtype = torch.float32, fast: FastModel | None = None) -> LanguageModel:
    model = tiny_model(name, fast, dtype)
    model.hf.to("cuda")
    return model


@pytest.mark.parametrize(("method", "name"), PLACES)
def test_every_method_trains_there_as_on_the_cpu(
    method: Method, name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    method = ready(method, name, lambda: tmp_path_factory.mktemp("made"))
    losses = []
    for device in ("cpu", "cuda"):
        model = model_for(method, name)
        model.hf.to(device)
        attachment = method.attach(model, "default", seed=0)
        assert all(tensor.device == model.device for tensor in attachment.trainables.values())
        losses.append(train(model, attachment))
    assert losses[1] == pytest.approx(losses[0], rel=2e-4)


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("heads", [4, 2])
def test_the_variable_length_kernel_computes_the_reference(window: int | None, heads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    segments = tuple(Segment(start, end) for start, end in ((0, 7), (7, 40), (40, 41), (41, 100)))
    terms = AttentionTerms(scale=0.3, window=window)
    shapes = ((1, 4, 100, 64), (1, heads, 100, 64), (1, heads, 100, 64))
    plain = [torch.randn(shape, generator=generator) for shape in shapes]
    weight = torch.randn(shapes[0], generator=generator)

    def of(tensors: list[Tensor], compute: object) -> list[Tensor]:
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        out = (
            packed_attention(*leaves, segments, terms)
            if compute
            else packed_attention_reference(*leaves, segments, terms)
        )
        return [out, *torch.autograd.grad((out.float() * weight.to(out.device)).sum(), leaves)]

    half = [tensor.to("cuda", torch.bfloat16) for tensor in plain]
    wanted = of([tensor.cpu().float() for tensor in half], None)
    for found, exact in zip(of(half, packed_attention), wanted, strict=True):
        assert_near(found.float().cpu(), exact, 2e-2)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "phi3", "mistral", "falcon-new"])
def test_half_precision_comes_near_full_precision(name: str) -> None:
    wanted = logprobs_of(tiny_model(name))
    assert_near(logprobs_of(on_gpu(name, torch.bfloat16)).cpu(), wanted, 0.05)


def logprobs_of(model: LanguageModel) -> Tensor:
    random_lora(model)
    return logprobs(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_computed_again_give_the_same_gradients(dtype: torch.dtype) -> None:
    gradients = []
    for checkpointed in (False, True):
        model = on_gpu("llama", dtype)
        attachment = LoRA(rank=3).attach(model, "default", seed=0)
        randomize(attachment)
        if checkpointed:
            model.checkpoint_layers()
        loss = model.forward(usual_batch(model, "default"), "default").logprob_N.sum()
        gradients.append(torch.autograd.grad(loss, list(attachment.trainables.values())))
    for plain, again in zip(*gradients, strict=True):
        assert_near(again, plain, 1e-5 if dtype == torch.float32 else 2e-2)


def test_greedy_answers_are_those_of_the_cpu() -> None:
    prompts = [(5, 9, 30, 4, 17, 8), (7,), (11, 50, 3)]
    found = []
    for model in (tiny_model("llama"), on_gpu("llama")):
        random_lora(model)
        found.append(answers(model, prompts, "default", 8))
    assert found[0] == found[1]


def test_sampled_answers_repeat_with_their_seed() -> None:
    model = on_gpu("llama", torch.bfloat16)
    request = Request((5, 9, 30), Sampling(max_new_tokens=8, temperature=1.0, top_p=0.9, seed=3), None)
    assert len({done.tokens for done in (*generate(model, [request]), *generate(model, [request]))}) == 1


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_whole_run_takes_the_course_of_the_cpu_and_goes_on_from_a_checkpoint(
    kind: str, tiny_model: Path, tmp_path: Path
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", 40)
    losses = {}
    method = {"kind": kind, "rank": 2 if kind == "lora" else None}
    for device in ("cpu", "cuda"):
        model = {"name": str(tiny_model), "device": device, "dtype": "fp32"}
        values = {**recipe_values(tiny_model, rows, method=method), "model": model}
        values["training"]["autocast"] = "none"
        begin(values, tmp_path / device)
        losses[device] = [line["loss"] for line in course(tmp_path / device)]
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=1e-3)

    with pytest.raises(Cut):
        begin(values, tmp_path / "broken", on_step=cut_after(3))
    go_on(tmp_path / "broken")
    resumed = [line["loss"] for line in course(tmp_path / "broken")]
    assert resumed == pytest.approx(losses["cuda"], rel=1e-4)


def test_a_recipe_that_says_nothing_trains_in_bf16_there(tiny_model: Path, tmp_path: Path) -> None:
    said: list[str] = []
    values = recipe_values(tiny_model, write_rows(tmp_path / "rows.jsonl", 40))
    result = begin(values, tmp_path / "run", announce=said.append)
    assert any("bf16, on cuda" in sentence for sentence in said)
    assert result.final_loss is not None
    assert result.final_loss < course(tmp_path / "run")[0]["loss"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(64, 96), (7, 33)])
@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_four_bits_are_unpacked_as_on_the_cpu(
    kind: FourBitKind, block: int, double: bool, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    weight_OI = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    packed = quantize_four_bit(weight_OI, kind, block=block, double=double)
    wanted = packed.dense(dtype)
    on_device = quantize_four_bit(weight_OI.cuda(), kind, block=block, double=double)
    for name, tensor in packed.named_buffers():
        assert_near(on_device.get_buffer(name).cpu().float(), tensor.float(), 1e-6)
    assert_near(packed.cuda().dense(dtype).cpu().float(), wanted.float(), 1e-6 if dtype == torch.float32 else 5e-3)


def in_gguf(weight_OI: Tensor) -> PackedWeight:
    """A weight in blocks of Q4_0."""
    blocks = gguf.quantize(weight_OI.numpy(), gguf.GGMLQuantizationType.Q4_0)
    shape = (weight_OI.shape[0], weight_OI.shape[1])
    return GGUFWeight(shape, torch.from_numpy(blocks), gguf.GGMLQuantizationType.Q4_0, None)


def in_codes_and_zero_points(weight_OI: Tensor) -> PackedWeight:
    """A weight as GPTQ has it, in eight bits, its inputs in another order."""
    rows, columns = weight_OI.shape
    codes = (weight_OI * 20 + 128).clamp(0, 255).to(torch.uint8)
    scale, zero = torch.full((rows, 3), 0.05).half(), torch.full((rows, 3), 128, dtype=torch.uint8)
    return AffineWeight("gptq", 8, codes, scale, zero, torch.arange(columns).flip(0))


def beside_a_low_rank(weight_OI: Tensor) -> PackedWeight:
    """A weight as PiSSA has it over NF4."""
    part = svd_of(weight_OI).best(4)
    return WithLowRank(quantize_four_bit(weight_OI - part.dense(), "nf4"), part)


@pytest.mark.parametrize(
    "quantize", [quantize_int8, quantize_mxfp4, in_gguf, in_codes_and_zero_points, beside_a_low_rank]
)
def test_other_formats_are_unpacked_as_on_the_cpu(quantize: Callable[[Tensor], PackedWeight]) -> None:
    packed = quantize(torch.randn(24, 96, generator=torch.Generator().manual_seed(0)))
    wanted = packed.dense(torch.float32)
    assert_near(packed.cuda().dense(torch.float32).cpu(), wanted, 1e-6)


@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8", "mxfp4"])
def test_a_run_over_a_quantized_base_takes_the_course_of_the_cpu(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    quantization = {"kind": kind, "compute": "fp32"}
    assert losses_on("cuda", tiny_model, tmp_path, quantization=quantization) == pytest.approx(
        losses_on("cpu", tiny_model, tmp_path, quantization=quantization), rel=1e-3
    )


def test_a_run_over_experts_in_mxfp4_takes_the_course_of_the_cpu(tmp_path: Path) -> None:
    released = write_tiny_experts(tmp_path / "released", packed=True)
    assert losses_on("cuda", released, tmp_path) == pytest.approx(losses_on("cpu", released, tmp_path), rel=1e-3)


def test_recomputed_layers_over_a_quantized_base_give_the_same_losses(tiny_model: Path, tmp_path: Path) -> None:
    kept, recomputed = (
        losses_on(
            "cuda",
            tiny_model,
            tmp_path / str(flag),
            quantization={"kind": "nf4"},
            training={"gradient_checkpointing": flag},
        )
        for flag in (False, True)
    )
    assert recomputed == pytest.approx(kept, rel=1e-5)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda optimizer: optimizer.model_fields["kind"].default)
def test_every_optimizer_takes_the_course_of_the_cpu_and_goes_on_from_a_checkpoint(
    optimizer: type[OptimizerSettings], tiny_model: Path, tmp_path: Path
) -> None:
    training = {"optimizer": optimizer.model_fields["kind"].default}
    wanted = losses_on("cpu", tiny_model, tmp_path, training=training)
    assert losses_on("cuda", tiny_model, tmp_path, training=training) == pytest.approx(wanted, rel=5e-3)
    with pytest.raises(Cut):
        losses_on("cuda", tiny_model, tmp_path / "broken", cut_after(3), training=training)
    go_on(tmp_path / "broken" / "cuda")
    resumed = [line["loss"] for line in course(tmp_path / "broken" / "cuda")]
    assert resumed == pytest.approx([line["loss"] for line in course(tmp_path / "cuda")], rel=1e-4)


def test_moments_in_page_locked_memory_are_those_in_unified_memory(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = {"optimizer": "paged-adamw"}
    losses = [losses_on("cuda", tiny_model, tmp_path / "first", training=training)]
    monkeypatch.setattr("luthier.training.optimizers._pages", lambda device, folder: PinnedMemory())
    losses.append(losses_on("cuda", tiny_model, tmp_path / "second", training=training))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_updates_within_the_backward_pass_are_those_after_it(tiny_model: Path, tmp_path: Path) -> None:
    method = {"kind": "full", "rank": None}
    losses = [
        losses_on(
            "cuda", tiny_model, tmp_path / str(inside), method=method, training={
                "update_in_backward": inside, "tokens_per_micro_batch": 4096, "optimizer": "paged-adamw", "peak_lr": 1e-3,
            },
            clip_norm=None,
        )
        for inside in (False, True)
    ]  # fmt: skip
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_a_step_that_does_not_fit_is_computed_in_smaller_micro_batches(tiny_model: Path, tmp_path: Path) -> None:
    training = {"rows_per_step": 8000, "tokens_per_micro_batch": 10**6, "steps": 2}
    torch.cuda.reset_peak_memory_stats()
    wanted = losses_on("cuda", tiny_model, tmp_path / "whole", rows=8000, training=training)
    peak, rest = torch.cuda.max_memory_allocated(), torch.cuda.memory_allocated()  # what the matrix library keeps stays
    torch.cuda.empty_cache()
    limit = (rest + 0.6 * (peak - rest)) / torch.cuda.get_device_properties(0).total_memory
    said: list[str] = []
    try:
        torch.cuda.set_per_process_memory_fraction(limit)
        found = losses_on("cuda", tiny_model, tmp_path / "short", rows=8000, announce=said.append, training=training)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert any("tokens in a micro-batch" in sentence for sentence in said)
    assert found == pytest.approx(wanted, rel=1e-5)


def test_bitsandbytes_is_used_where_it_is_installed() -> None:
    pytest.importorskip("bitsandbytes")
    assert cuda_library() is not None


def losses_on(
    device: str,
    tiny_model: Path,
    folder: Path,
    on_step: Callable[[dict[str, Any]], None] = nothing,
    announce: Callable[[str], None] = nothing,
    rows: int = 40,
    clip_norm: float | None = 1.0,
    **parts: dict[str, Any],
) -> list[float]:
    """The losses of a run in fp32, in a folder of the device's name in this one."""
    folder.mkdir(exist_ok=True)
    values = recipe_values(tiny_model, write_rows(folder / "rows.jsonl", rows), **parts)
    values["model"] = {"name": str(tiny_model), "device": device, "dtype": "fp32"}
    values["training"] = {**values["training"], "autocast": "none", "clip_norm": clip_norm}
    begin(values, folder / device, on_step, announce)
    return [line["loss"] for line in course(folder / device)]


@pytest.mark.parametrize("method", [{}, {"kind": "full", "rank": None}], ids=["lora", "full"])
def test_planned_bytes_of_tensors_are_those_that_torch_allocates(method: dict[str, Any]) -> None:
    values = recipe_values(Path("model"), Path(__file__), method=method, training={"autocast": "none"})
    recipe = make_recipe({**values, "model": {"name": "model", "dtype": "fp32"}})
    config = AutoConfig.for_model(
        "llama", hidden_size=512, intermediate_size=1536, num_hidden_layers=4, num_attention_heads=8, vocab_size=8000
    )
    one = work_of(recipe, config, imagined_rows(recipe, config), torch.device("cuda"))
    (planned,) = trace_all([one])
    assert isinstance(planned, Trace)
    take_steps(replace(one, device=torch.device("cuda")))  # what libraries hold for themselves is there from now on
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    take_steps(replace(one, device=torch.device("cuda")))
    found = torch.cuda.max_memory_allocated() - before
    assert max(peak.num_bytes for peak in planned.peaks.values()) == pytest.approx(found, rel=0.1)
