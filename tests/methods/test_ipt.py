"""IPT: coder and decoder, what each stage trains, and what passes from one stage to the next."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from methods.soft_prompt_files import PEFT_WARNINGS, by_peft, written
from models.tiny import plain_model, tiny_model
from models.tuned import logprobs, quiet, randomize, usual_batch
from near import assert_near
from peft import PeftModel
from pydantic import ValidationError
from torch import Tensor

from luthier.errors import RecipeError
from luthier.methods import IPT, Attachment, PromptTuning
from luthier.methods.adapter_attachment import AdapterAttachment

pytestmark = PEFT_WARNINGS
SIZES = {"num_virtual_tokens": 3, "intrinsic": 5, "inner": 7}


@pytest.fixture
def tasks(tmp_path: Path) -> tuple[str, ...]:
    """Two folders with random prompts of three tokens."""
    folders = []
    for index in range(2):
        attachment = PromptTuning(num_virtual_tokens=3).attach(tiny_model("llama"), "default", seed=index)
        folder = tmp_path / f"task-{index}"
        folder.mkdir()
        attachment.write(folder, quiet)
        folders.append(str(folder))
    return tuple(folders)


def prompts_of(tasks: tuple[str, ...]) -> Tensor:
    """The tasks' prompts, flattened."""
    return torch.stack([PromptTuning.form.read(task).tensors["prompt_embeddings"].flatten() for task in tasks])


def decoded(w: dict[str, Tensor], z: Tensor) -> Tensor:
    """W₃ tanh(W₂ z + c₂) + c₃."""
    inner = torch.tanh(z @ w["decoder.inner.weight"].t() + w["decoder.inner.bias"])
    return inner @ w["decoder.outer.weight"].t() + w["decoder.outer.bias"]


def learned(tasks: tuple[str, ...], folder: Path) -> Attachment:
    """A subspace that was learned from the tasks for some steps, written into the folder."""
    model = tiny_model("llama")
    attachment = IPT(stage="subspace", tasks=tasks, **SIZES).attach(model, "default", seed=0)
    tensors = list(attachment.trainables.values())
    optimizer = torch.optim.Adam(tensors, lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        penalty = attachment.extra_loss()
        assert penalty is not None
        (penalty - model.forward(usual_batch(model, "default"), "default").logprob_N.mean()).backward()
        optimizer.step()
    folder.mkdir()
    attachment.write(folder, quiet)
    return attachment


def count(settings: dict[str, int], width: int) -> int:
    """The numbers of coder and decoder by the formula."""
    prompt, code, inner = settings["num_virtual_tokens"] * width, settings["intrinsic"], settings["inner"]
    return prompt * code + code + inner * code + inner + inner * prompt + prompt


def test_tuning_trains_the_code_and_the_subspace_coder_and_decoder(tasks: tuple[str, ...]) -> None:
    tune = IPT(**SIZES).attach(tiny_model("llama"), "default", seed=0)
    assert {key: tuple(tensor.shape) for key, tensor in tune.trainables.items()} == {"z": (5,)}
    subspace = IPT(stage="subspace", tasks=tasks, **SIZES).attach(tiny_model("llama"), "default", seed=0)
    assert subspace.num_trainable == count(SIZES, 32)
    assert count({"num_virtual_tokens": 100, "intrinsic": 250, "inner": 768}, 768) == 78_452_218


def test_a_code_begins_small_and_a_decoder_as_torchs_linear_layers() -> None:
    attachment = IPT(num_virtual_tokens=3, intrinsic=400, inner=50).attach(tiny_model("llama"), "default", seed=0)
    assert float(attachment.trainables["z"].detach().std()) == pytest.approx(0.02, rel=0.2)
    tensors = attachment.file_tensors()
    for part, inputs in (("inner", 400), ("outer", 50)):
        for kind in ("weight", "bias"):
            assert 0.8 * inputs**-0.5 < float(tensors[f"decoder.{part}.{kind}"].abs().max()) <= inputs**-0.5


def test_the_prompt_is_the_formula_of_the_code() -> None:
    attachment = IPT(**SIZES).attach(tiny_model("llama"), "default", seed=0)
    randomize(attachment, 1.0)
    tensors = attachment.file_tensors()
    assert_near(tensors["prompt_embeddings"].flatten(), decoded(tensors, tensors["z"]), 1e-6)


def test_the_penalty_is_alpha_times_the_mean_square_error_over_all_tasks_and_the_prompt_is_the_first_ones(
    tasks: tuple[str, ...],
) -> None:
    method = IPT(stage="subspace", tasks=tasks, alpha=3.0, **SIZES)
    attachment = method.attach(tiny_model("llama"), "default", seed=0)
    w = {key: tensor.detach() for key, tensor in attachment.trainables.items()}
    prompts = prompts_of(tasks)
    rebuilt = decoded(w, prompts @ w["coder.weight"].t() + w["coder.bias"])
    penalty = attachment.extra_loss()
    assert penalty is not None
    assert_near(penalty, 3.0 * ((rebuilt - prompts) ** 2).sum() / prompts.numel(), 1e-6)
    assert_near(attachment.file_tensors()["prompt_embeddings"].flatten(), rebuilt[0], 1e-6)


def test_the_loss_of_the_data_reaches_coder_and_decoder(tasks: tuple[str, ...]) -> None:
    model = tiny_model("llama")
    attachment = IPT(stage="subspace", tasks=tasks, **SIZES).attach(model, "default", seed=0)
    loss = model.forward(usual_batch(model, "default"), "default").logprob_N.sum()
    gradients = torch.autograd.grad(loss, list(attachment.trainables.values()))
    assert all(bool((gradient != 0).any()) for gradient in gradients)


def test_a_subspace_as_large_as_the_number_of_tasks_comes_to_hold_their_prompts(
    tasks: tuple[str, ...], tmp_path: Path
) -> None:
    attachment = IPT(stage="subspace", tasks=tasks, **SIZES).attach(tiny_model("llama"), "default", seed=0)
    optimizer = torch.optim.Adam(attachment.trainables.values(), lr=0.02)
    first = last = attachment.extra_loss()
    for _ in range(300):
        optimizer.zero_grad()
        last = attachment.extra_loss()
        assert last is not None
        last.backward()
        optimizer.step()
    assert first is not None
    assert last is not None
    assert last.item() < 0.01 * first.item()


def test_the_learned_decoder_passes_to_a_fresh_code_and_with_from_its_own_code_too(
    tasks: tuple[str, ...], tmp_path: Path
) -> None:
    subspace = learned(tasks, tmp_path / "subspace")
    assert isinstance(subspace, AdapterAttachment)
    kept = subspace.file_tensors()
    model = tiny_model("llama")
    fresh = IPT(decoder=str(tmp_path / "subspace"), **SIZES).attach(model, "fresh", seed=3)
    on = IPT.model_validate({"from": str(tmp_path / "subspace")}).attach(model, "default", seed=3)
    for attachment in (fresh, on):
        tensors = attachment.file_tensors()
        assert all(torch.equal(tensors[key], kept[key]) for key in kept if key.startswith("decoder."))
        assert list(attachment.trainables) == ["z"]
        assert torch.equal(tensors["z"], kept["z"]) == (attachment is on)
    expected = tiny_model("llama")
    PromptTuning(begin_from=str(tmp_path / "subspace")).attach(expected, "default", seed=0)
    assert_near(logprobs(model), logprobs(expected), 1e-6)


def test_peft_reads_the_decoded_prompt_and_prompt_tuning_goes_on_with_it(tmp_path: Path) -> None:
    expected = written(tmp_path, "llama", IPT(**SIZES))
    assert_near(by_peft(PeftModel.from_pretrained(plain_model("llama"), tmp_path / "a")), expected)
    model = tiny_model("llama")
    PromptTuning(begin_from=str(tmp_path / "a")).attach(model, "default", seed=0)
    assert_near(logprobs(model), expected, 1e-6)


def test_a_file_names_no_folder(tasks: tuple[str, ...], tmp_path: Path) -> None:
    learned(tasks, tmp_path / "subspace")
    text = "".join(path.read_text() for path in (tmp_path / "subspace").glob("*.json"))
    assert "task-" not in text
    assert json.loads((tmp_path / "subspace" / "luthier_adapter.json").read_text())["settings"] == {
        **SIZES,
        "stage": "tune",
    }


def test_a_subspace_cannot_go_on_from_a_code(tasks: tuple[str, ...], tmp_path: Path) -> None:
    written(tmp_path, "llama", IPT(**SIZES))
    method = IPT.model_validate({"from": str(tmp_path / "a"), "stage": "subspace", "tasks": tasks})
    with pytest.raises(RecipeError, match="stage"):
        method.attach(tiny_model("llama"), "default", seed=0)


def test_prompts_or_a_decoder_of_another_size_are_refused(tasks: tuple[str, ...], tmp_path: Path) -> None:
    written(tmp_path, "llama", IPT(**SIZES))
    for settings in ({"stage": "subspace", "tasks": tasks}, {"decoder": str(tmp_path / "a")}):
        with pytest.raises(RecipeError, match="shape"):
            IPT.model_validate({**SIZES, **settings, "num_virtual_tokens": 4}).attach(
                tiny_model("llama"), "default", seed=0
            )


@pytest.mark.parametrize(
    "settings",
    [
        {"stage": "subspace"},
        {"tasks": ["a"]},
        {"stage": "subspace", "tasks": ["a"], "decoder": "b"},
        {"from": "a", "decoder": "b"},
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        IPT.model_validate(settings)
