"""LoReFT: the formula at the chosen tokens, where prompts end in batches and in generation, and R at every step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models.rows import plain_logprobs, random_row, random_rows, with_sources
from models.tiny import ENCODER_DECODERS, NAMES, VOCABULARY, plain_model, tiny_model
from models.tuned import LENGTHS, logprobs, plain_attention, randomize
from near import assert_all_near, assert_apart, assert_near
from pydantic import ValidationError
from tiny_model import write_tiny_model
from tiny_runs import begin, course, recipe_values, write_rows
from torch import Tensor
from transformers import PreTrainedModel

from luthier.data.packing import collate
from luthier.errors import RecipeError
from luthier.generation.engine import Request, generate
from luthier.generation.prefill import pack_prompts
from luthier.generation.settings import Sampling
from luthier.methods import Attachment, LoReFT, PrefixTuning, PromptTuning, Stack
from luthier.methods.loreft import Subspace, orthonormal
from luthier.models.language_model import LanguageModel
from luthier.types import Example, Origin, Part

PROMPTS = ((5, 9), (8, 12), (1, 4), (3, 9))
"""(tokens of the prompt, tokens of the whole row), a row each."""


def rows_with_prompts(prompts: Sequence[tuple[int, int]] = PROMPTS) -> list[Example]:
    """Rows of random tokens that learn all that follows their prompts."""
    return [
        example(random_row(length, number).parts[0].tokens_T, prompt, number)
        for number, (prompt, length) in enumerate(prompts)
    ]


def example(tokens_T: Any, prompt: int, document: int) -> Example:
    """A row that learns all that follows its prompt."""
    source_N = np.arange(prompt - 1, len(tokens_T) - 1)
    ones_N = np.ones(len(source_N), dtype=np.float32)
    answer_N = np.zeros(len(source_N), dtype=np.int64)
    return Example(
        (Part(tokens_T),), source_N, tokens_T[source_N + 1], ones_N, answer_N, document, Origin("rows", document + 1)
    )


def gram_schmidt(rows_RD: Tensor) -> Tensor:
    """The rows, each without its share of those before it, at length 1."""
    made: list[Tensor] = []
    for row_D in rows_RD:
        rest_D = row_D - sum((row_D @ other_D * other_D for other_D in made), torch.zeros_like(row_D))
        made.append(rest_D / rest_D.norm())
    return torch.stack(made)


def edited(name: str, attachment: Attachment, chosen: Sequence[int]) -> PreTrainedModel:
    """The model as transformers computes it, its layers' outputs changed by the formula at these positions."""
    model = plain_model(name, plain_attention(name))
    tensors = {key: tensor.detach().double() for key, tensor in attachment.trainables.items()}
    for layer in {key.rsplit(".reft_", 1)[0] for key in tensors}:
        r_RD = gram_schmidt(tensors[f"{layer}.reft_basis"])
        w_RD, b_R = tensors[f"{layer}.reft_source.weight"], tensors[f"{layer}.reft_source.bias"]

        def change(module: Any, inputs: Any, output: Any, r_RD=r_RD, w_RD=w_RD, b_R=b_R) -> Any:  # type: ignore[no-untyped-def]
            states = (output[0] if isinstance(output, tuple) else output).clone()
            h_MD = states[0, list(chosen)].double()
            states[0, list(chosen)] = (h_MD + (h_MD @ w_RD.T + b_R - h_MD @ r_RD.T) @ r_RD).to(states.dtype)
            return (states, *output[1:]) if isinstance(output, tuple) else states

        model.get_submodule(layer).register_forward_hook(change)
    return model


def chosen_positions(prompt: int, first: int, last: int) -> list[int]:
    """Which tokens of a prompt change."""
    return sorted({*range(min(first, prompt)), *range(max(0, prompt - last), prompt)})


def random_loreft(model: LanguageModel, **settings: Any) -> Attachment:
    """A LoReFT that changes much."""
    attachment = LoReFT(**{"rank": 3, **settings}).attach(model, "default", seed=0)
    randomize(attachment, 0.3)
    return attachment


@pytest.mark.parametrize("name", NAMES)
def test_the_formula_holds_at_the_first_and_last_tokens_of_each_prompt(name: str) -> None:
    model = tiny_model(name)
    attachment = random_loreft(model, first=2, last=1)
    rows = rows_with_prompts()
    expected = [
        plain_logprobs(edited(name, attachment, chosen_positions(prompt, 2, 1)), [row]).detach()
        for row, (prompt, _) in zip(rows, PROMPTS, strict=True)
    ]
    batch = collate(rows, model.layout, 0)
    assert_near(model.forward(batch, "default").logprob_N, torch.cat(expected), 2e-5)
    assert_apart(model.forward(batch).logprob_N, torch.cat(expected))


@pytest.mark.parametrize(("first", "last"), [(0, 2), (3, 0), (7, 7)])
def test_first_and_last_are_counted_apart_and_a_short_prompt_is_changed_as_a_whole(first: int, last: int) -> None:
    model = tiny_model("llama")
    attachment = random_loreft(model, first=first, last=last, layers=(1,))
    assert {key.split(".reft_")[0] for key in attachment.trainables} == {model.anatomy.layers[1].name}
    assert attachment.lowest_layer == 1
    rows = rows_with_prompts()
    expected = [
        plain_logprobs(edited("llama", attachment, chosen_positions(prompt, first, last)), [row]).detach()
        for row, (prompt, _) in zip(rows, PROMPTS, strict=True)
    ]
    assert_near(model.forward(collate(rows, "packed", 0), "default").logprob_N, torch.cat(expected))


def test_in_its_subspace_the_state_becomes_w_h_plus_b_and_stays_itself_across_it() -> None:
    space = Subspace(torch.randn(3, 8, generator=torch.Generator().manual_seed(0)), torch.device("cpu"))
    for index, tensor in enumerate(space.tensors.values()):
        tensor.data.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(index)))
    h_MD = torch.randn(5, 8, generator=torch.Generator().manual_seed(9))
    changed_MD, r_RD = h_MD + space(h_MD), space.rotation()
    assert_near(changed_MD @ r_RD.T, h_MD @ space.source_RD.T + space.source_R)
    across_DD = torch.eye(8) - r_RD.T @ r_RD
    assert_near(changed_MD @ across_DD, h_MD @ across_DD)


def test_the_rows_are_those_of_gram_schmidt_with_its_gradients() -> None:
    rows = torch.randn(3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2), requires_grad=True)
    assert_near(orthonormal(rows), gram_schmidt(rows), 1e-12)
    assert torch.autograd.gradcheck(orthonormal, (rows,))


def test_r_is_orthonormal_after_every_step_and_moves() -> None:
    model = tiny_model("llama")
    attachment = LoReFT(rank=4, first=2, last=2).attach(model, "default", seed=0)
    optimizer = torch.optim.AdamW(attachment.trainables.values(), lr=0.05)
    batch = collate(rows_with_prompts(), "packed", 0)
    edit = model.edits["default"]
    spaces = [space for space in edit.modules() if isinstance(space, Subspace)]
    before = [space.rotation().detach().clone() for space in spaces]
    for _ in range(4):
        optimizer.zero_grad()
        (-model.forward(batch, "default").logprob_N.sum()).backward()
        optimizer.step()
        for space in spaces:
            assert_near(space.rotation() @ space.rotation().T, torch.eye(4), 1e-5)
    assert all(float((a - b.rotation().detach()).abs().max()) > 1e-2 for a, b in zip(before, spaces, strict=True))


def test_the_count_is_that_of_the_formula() -> None:
    assert LoReFT(rank=5).attach(tiny_model("llama"), "default", seed=0).num_trainable == 2 * (2 * 5 * 32 + 5)
    only = LoReFT(rank=5, layers=(1,)).attach(tiny_model("llama"), "default", seed=0)
    assert only.num_trainable == 2 * 5 * 32 + 5


def test_two_answers_to_one_prompt_are_no_part_of_it() -> None:
    model = tiny_model("llama")
    random_loreft(model, first=1, last=2)
    prompt, *answers = (random_row(length, number).parts[0].tokens_T for number, length in enumerate((6, 4, 7)))
    sources = [np.array([5, *range(6, 9)]), np.array([5, *range(10, 16)])]
    shared = Example(
        parts=(Part(prompt), Part(answers[0], parent=0), Part(answers[1], parent=0)),
        source_N=np.concatenate(sources),
        token_N=np.concatenate(answers),
        weight_N=np.ones(11, dtype=np.float32),
        sample_N=np.array([0] * 4 + [1] * 7),
        document=0,
        origin=Origin("rows", 1),
    )
    alone = [example(np.concatenate([prompt, answer]), 6, number) for number, answer in enumerate(answers)]
    before = rows_with_prompts(((2, 5),))[0]
    together = model.forward(collate([before, shared], "packed", 0), "default").logprob_N[before.num_learned :]
    separate = [model.forward(collate([row], "packed", 0), "default").logprob_N for row in alone]
    assert_near(together, torch.cat(separate))


def test_first_tokens_alone_let_documents_share_their_beginning() -> None:
    beginning = random_row(10, 99).parts[0].tokens_T
    rows = [
        example(np.concatenate([beginning, random_row(length, number).parts[0].tokens_T]), 11 + number, number)
        for number, length in enumerate((5, 6, 9))
    ]
    model = tiny_model("llama")
    tensors = list(random_loreft(model, first=4, last=0).trainables.values())
    assert model.shares_tokens("default")
    found = []
    for shares in (False, True):
        batch = collate(rows, "packed", 0, shares_prefix=shares)
        logprob_N = model.forward(batch, "default").logprob_N
        found.append([logprob_N, *torch.autograd.grad(logprob_N.sum(), tensors)])
    assert len(batch.segments) == 4
    assert_all_near(found[1], found[0], 2e-5)


def test_documents_share_no_tokens_where_the_last_of_a_prompt_change(tmp_path: Path) -> None:
    model = tiny_model("llama")
    random_loreft(model, first=1, last=2)
    assert not model.shares_tokens("default")
    assert model.shares_tokens(None)
    write_tiny_model(tmp_path / "model")
    write_rows(tmp_path / "rows.jsonl", 12)
    write_rows(tmp_path / "held-out.jsonl", 5, start=40)
    courses = []
    for shares in (True, False):
        method = {"kind": "loreft", "rank": 2, "first": 1, "last": 30}
        training = {"steps": 2, "evaluate_every": 1, "fast": {"prefix": shares}}
        data = {"validation": str(tmp_path / "held-out.jsonl")}
        parts = {"method": method, "training": training, "data": data}
        begin(recipe_values(tmp_path / "model", tmp_path / "rows.jsonl", **parts), tmp_path / str(shares))
        courses.append(course(tmp_path / str(shares)))
    assert courses[0] == courses[1]


@pytest.mark.parametrize(("first", "last"), [(2, 3), (3, 0)])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "falcon-new"])
def test_generation_changes_tokens_of_the_prompt_and_none_of_the_answer(name: str, first: int, last: int) -> None:
    model = tiny_model(name)
    attachment = random_loreft(model, first=first, last=last)
    beginning = list(range(3, 13))  # the prompts have it in common, and of the first one the last tokens lie in it
    prompts = [[*beginning, 20], [*beginning, 20, 21, 22, 23, 24], [*beginning, 30, 7], [5, 6]]
    requests = [Request(tuple(prompt), Sampling(max_new_tokens=5), "default") for prompt in prompts]
    answers = [done.tokens for done in generate(model, requests)]
    for prompt, answer in zip(prompts, answers, strict=True):
        plain = edited(name, attachment, chosen_positions(len(prompt), first, last))
        said: list[int] = []
        for _ in answer:
            logits_V = plain(input_ids=torch.tensor([prompt + said]), use_cache=False).logits[0, -1]
            said.append(int(logits_V.argmax()))
        assert tuple(said) == answer
    assert len(pack_prompts(prompts[:3], shares_prefix=model.shares_tokens("default")).segments) == (3 if last else 4)


@pytest.mark.parametrize("virtual", [PromptTuning(num_virtual_tokens=4), PrefixTuning(num_virtual_tokens=4)])
@pytest.mark.parametrize("name", ["llama", "t5", "bart"])
def test_virtual_tokens_before_a_document_are_no_part_of_its_prompt(name: str, virtual: Any) -> None:
    model = tiny_model(name)
    parts = (virtual, LoReFT(rank=2, first=2, last=0))
    randomize(Stack(parts=parts).attach(model, "default", seed=0), 0.3)
    seen: list[int] = []
    model.edits["default"].register_forward_pre_hook(lambda module, args: seen.append(len(args[1])))
    prompts = [tuple(range(3, 3 + length)) for length in (6, 1)]
    generate(model, [Request(prompt, Sampling(max_new_tokens=3), "default") for prompt in prompts])
    assert sum(seen) == 2 * (
        2 + 1
    )  # in each of two layers (an encoder's two) two tokens of the first prompt, and the second's only one


@pytest.mark.parametrize("settings", [{"first": 0, "last": 0}, {"rank": 0}, {"last": -1}])
def test_settings_that_change_nothing_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        LoReFT.model_validate(settings)


def test_more_directions_than_the_width_has_are_refused_with_the_most_there_can_be() -> None:
    with pytest.raises(RecipeError, match="width 32") as caught:
        LoReFT(rank=33).attach(tiny_model("llama"), "default", seed=0)
    assert "32" in caught.value.mend
    assert LoReFT(rank=32).attach(tiny_model("llama"), "default", seed=0).num_trainable == 2 * (2 * 32 * 32 + 32)


def test_tokens_without_a_target_are_all_prompt() -> None:
    model = tiny_model("llama")
    random_loreft(model, first=0, last=1)
    tokens_T = np.arange(3, 10, dtype=np.int64) % VOCABULARY
    nothing = np.zeros(0, dtype=np.int64)
    row = Example((Part(tokens_T),), nothing, nothing, nothing.astype(np.float32), nothing, 0, Origin("rows", 1))
    batch = collate([row], "packed", 0)
    tuned, base = model.hidden(batch, "default"), model.hidden(batch)
    assert_near(tuned[:, :-1], base[:, :-1], 1e-6)
    assert_apart(tuned[:, -1], base[:, -1])
    assert_apart(logprobs(model), logprobs(model, None))


@pytest.mark.parametrize("name", ["llama", *ENCODER_DECODERS])
def test_with_w_at_r_and_b_at_0_nothing_changes_whatever_r_is(name: str) -> None:
    model = tiny_model(name)
    random_loreft(model)
    assert_apart(logprobs(model), logprobs(model, None))
    for space in model.edits["default"].modules():
        if isinstance(space, Subspace):
            space.source_RD.data.copy_(space.rotation())
            space.source_R.data.zero_()
    assert_near(logprobs(model), logprobs(model, None), 1e-6)


# ── encoder-decoders ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("first", "last"), [(2, 1), (0, 2), (7, 7)])
@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_the_formula_holds_at_the_first_and_last_tokens_of_each_source(name: str, first: int, last: int) -> None:
    model = tiny_model(name)
    attachment = random_loreft(model, first=first, last=last)
    rows = with_sources(random_rows(LENGTHS))
    expected = [
        plain_logprobs(edited(name, attachment, chosen_positions(row.num_source_tokens, first, last)), [row]).detach()
        for row in rows
    ]
    batch = collate(rows, "bucketed", 0)
    assert_near(model.forward(batch, "default").logprob_N, torch.cat(expected), 2e-5)
    assert_apart(model.forward(batch).logprob_N, torch.cat(expected))


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_an_edit_changes_its_own_layer_and_tokens_of_the_encoder_and_no_others(name: str) -> None:
    model = tiny_model(name)
    random_loreft(model, first=1, last=1, layers=(1,))  # the encoder's last
    below: list[Tensor] = []
    lower = model.hf.get_submodule(model.anatomy.layers[0].name)
    lower.register_forward_hook(
        lambda module, args, output: below.append(output if isinstance(output, Tensor) else output[0])
    )
    rows = with_sources(random_rows(LENGTHS))
    sources = collate(rows, "bucketed", 0).sources
    assert sources is not None
    tuned_BSD, base_BSD = (model.encode(sources, adapter).states_BSD for adapter in ("default", None))
    is_chosen_BS = torch.zeros_like(sources.mask_BS)
    for row, example in enumerate(rows):
        is_chosen_BS[row, chosen_positions(example.num_source_tokens, 1, 1)] = True
    assert torch.equal(*below)
    assert torch.equal(tuned_BSD[~is_chosen_BS], base_BSD[~is_chosen_BS])
    assert bool(((tuned_BSD - base_BSD).abs().amax(-1)[is_chosen_BS] > 1e-3).all())


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_an_answer_to_a_source_is_that_of_the_edited_encoder_and_is_itself_left_alone(name: str) -> None:
    model = tiny_model(name)
    attachment = random_loreft(model, first=2, last=1)
    seen: list[int] = []
    model.edits["default"].register_forward_pre_hook(lambda module, args: seen.append(len(args[1])))
    prompts = [(5, 9, 30, 4, 17, 8), (7,), (11, 50, 3)]
    answers = generate(model, [Request(prompt, Sampling(max_new_tokens=5), "default") for prompt in prompts])
    assert sum(seen) == 2 * (3 + 1 + 3)
    for prompt, answer in zip(prompts, answers, strict=True):
        plain = edited(name, attachment, chosen_positions(len(prompt), 2, 1))
        said = [model.answer_start]
        for _ in answer.tokens:
            answer_1T = torch.tensor([said])
            logits_1TV = plain(input_ids=torch.tensor([prompt]), decoder_input_ids=answer_1T, use_cache=False).logits
            said.append(int(logits_1TV[0, -1].argmax()))
        assert tuple(said[1:]) == answer.tokens


def test_layers_are_those_of_an_encoder_and_a_decoders_are_refused_with_the_last_there_is() -> None:
    count = 2 * 3 * 32 + 3
    assert LoReFT(rank=3).attach(tiny_model("bart"), "default", seed=0).num_trainable == 2 * count
    only = LoReFT(rank=3, layers=(1,)).attach(tiny_model("t5"), "default", seed=0)
    assert (only.num_trainable, only.lowest_layer) == (count, 1)
    assert all(name.startswith("encoder.block.1.") for name in only.trainables)
    with pytest.raises(RecipeError, match="Layer 3 is the decoder's") as caught:
        LoReFT(rank=3, layers=(0, 3)).attach(tiny_model("t5"), "default", seed=0)
    assert "from 0 to 1" in caught.value.mend
    assert caught.value.field == "method.layers"
