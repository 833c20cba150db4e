"""What holds on a CPU holds on a GPU: the same losses, the same answers, and half precision near them. Skips without one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from methods.examples import EXAMPLES, REFUSED, model_for, ready
from methods.test_every_method import answers, train
from models.tiny import tiny_model
from models.tuned import logprobs, random_lora, randomize, usual_batch
from near import assert_near
from tiny_runs import Cut, begin, course, cut_after, go_on, recipe_values, write_rows
from torch import Tensor

from luthier.generation.engine import Request, generate
from luthier.generation.settings import Sampling
from luthier.methods import LoRA, Method
from luthier.models.language_model import FastModel, LanguageModel
from luthier.ops.attention import AttentionTerms, packed_attention, packed_attention_reference
from luthier.types import Segment

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")

PLACES = [
    pytest.param(method, name, id=f"{method.kind}-{name}")
    for method in EXAMPLES
    for name in ("llama", "gemma2", "gpt2", "falcon-new", "bert", "bart")
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
