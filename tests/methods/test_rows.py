"""Selected rows: against a model whose dense weights hold the same rows, written back, and in peft's files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from models.rows import batch_of, plain_logprobs, random_rows
from models.tiny import plain_model, tiny_model
from models.tuned import LENGTHS, logprobs, plain_attention, quiet, randomize
from near import assert_apart, assert_near
from peft import PeftModel, TrainableTokensConfig, get_peft_model
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from luthier.errors import NotFound, RecipeError, TargetNotFound
from luthier.methods import Attachment, Rows
from luthier.methods.bank import frozen_module
from luthier.models.call import Call, Run, calling
from luthier.models.language_model import LanguageModel
from luthier.models.writing import write_model
from luthier.training.flat import FlatTrainables
from luthier.training.optimizers import AdamW, FlatAdamW

pytestmark = [
    # peft says so of every embedding that is named, and ties this adapter all the same
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Unable to fetch remote file"),
    pytest.mark.filterwarnings("ignore:Could not find a config file"),
]

TOKENS = (41, 7, 30, 8, 55)
UNTIED = ("llama", "gpt_neox", "phi")
TIED = ("gpt2", "gemma2", "gemma3_text", "granite", "opt-norm-after", "falcon-new")


def tuned(name: str, **settings: Any) -> tuple[LanguageModel, Attachment]:
    """A tiny model with random rows."""
    model = tiny_model(name)
    attachment = Rows(**settings).attach(model, "default", seed=0)
    randomize(attachment, 0.3)
    return model, attachment


def table_of(model: LanguageModel, place: str) -> torch.nn.Parameter:
    """A frozen weight by its module's name, whether or not a bank is around it."""
    return frozen_module(model, place).get_parameter("weight")


# ── rows of the embedding ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", UNTIED + TIED)
def test_it_computes_as_a_model_whose_table_holds_the_rows_seen_by_a_tied_head_too(name: str) -> None:
    model, attachment = tuned(name, tokens=TOKENS)
    (rows,) = attachment.trainables.values()
    dense = tiny_model(name)
    table_of(dense, dense.anatomy.embedding).data[list(TOKENS)] = rows.detach()
    assert dense.anatomy.is_head_tied == (name in TIED)
    assert_near(logprobs(model), logprobs(dense, None))
    assert_apart(logprobs(model), logprobs(model, None))


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "gpt2", "granite"])
def test_the_gradient_is_that_of_the_rows_of_the_dense_table(name: str) -> None:
    dense = tiny_model(name)
    table = table_of(dense, dense.anatomy.embedding).requires_grad_(True)
    (expected,) = torch.autograd.grad(dense.forward(batch_of(LENGTHS, dense.layout)).logprob_N.sum(), [table])
    model = tiny_model(name)
    attachment = Rows(tokens=TOKENS).attach(model, "default", seed=0)
    loss = model.forward(batch_of(LENGTHS, model.layout), "default").logprob_N.sum()
    (found,) = torch.autograd.grad(loss, list(attachment.trainables.values()))
    assert_near(found, expected[list(TOKENS)])


@pytest.mark.parametrize("name", UNTIED)
def test_an_untied_head_may_train_rows_of_its_own(name: str) -> None:
    model, attachment = tuned(name, tokens=TOKENS, in_head=True)
    anatomy = model.anatomy
    dense = tiny_model(name)
    for place in (anatomy.embedding, anatomy.head):
        rows = attachment.trainables[f"{place}.trainable_tokens_delta"]
        table_of(dense, place).data[list(TOKENS)] = rows.detach()
    assert attachment.num_trainable == 2 * len(TOKENS) * 32
    assert_near(logprobs(model), logprobs(dense, None))


def test_a_tied_head_adds_no_numbers_and_stays_tied_when_the_rows_are_merged(tmp_path: Path) -> None:
    for name in ("gpt2", "gemma2"):
        model, attachment = tuned(name, tokens=TOKENS, in_head=True)
        assert attachment.num_trainable == len(TOKENS) * 32
        unmerged = logprobs(model)
        attachment.merge()
        assert_near(logprobs(model, None), unmerged)
        anatomy = model.anatomy
        assert anatomy.is_head_tied
        assert table_of(model, anatomy.head) is table_of(model, anatomy.embedding)
        (tmp_path / name).mkdir()
        write_model(model, tmp_path / name, torch.float32)
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / name, attn_implementation="eager").eval()
        assert_near(plain_logprobs(plain, random_rows(LENGTHS)), unmerged)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_after_adamw_with_weight_decay_the_other_rows_have_their_bits_and_the_chosen_are_written_as_they_are(
    name: str,
) -> None:
    model = tiny_model(name)
    anatomy = model.anatomy
    before = {place: table_of(model, place).clone() for place in (anatomy.embedding, *anatomy.linears, anatomy.head)}
    attachment = Rows(tokens=TOKENS, linear_rows=0.1).attach(model, "default", seed=0)
    flat = FlatTrainables(attachment.groups, workers=1)
    optimizer = FlatAdamW(flat, AdamW(weight_decay=0.5))
    for _ in range(3):
        flat.clear_gradients()
        loss = -model.forward(batch_of(LENGTHS, model.layout), "default").logprob_N.sum()
        flat.add_gradients(0, torch.autograd.grad(loss, flat.tensors))
        flat.sum_gradients()
        optimizer.step(0.01)
    trained = {key: tensor.detach().clone() for key, tensor in attachment.trainables.items()}
    index = {key: tensor for key, tensor in attachment.file_tensors().items() if key.endswith("rows.index")}
    attachment.merge()
    expected = dict(before)
    tied = (anatomy.head,) if anatomy.is_head_tied else ()
    for place in (anatomy.embedding, *tied):
        rows = trained[f"{anatomy.embedding}.trainable_tokens_delta"]
        expected[place] = before[place].index_copy(0, torch.tensor(TOKENS), rows)
    for place in anatomy.linears:
        dim = 1 if name == "gpt2" else 0
        rows = trained[f"{place}.rows.weight"]
        assert not torch.equal(before[place].index_select(dim, index[f"{place}.rows.index"]), rows.t() if dim else rows)
        expected[place] = before[place].index_copy(dim, index[f"{place}.rows.index"], rows.t() if dim else rows)
    assert all(torch.equal(table_of(model, place), weight) for place, weight in expected.items())


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "gpt2"])
def test_a_half_precision_base_starts_as_it_is_and_merges_into_its_own_format(name: str) -> None:
    model = tiny_model(name, dtype=torch.bfloat16)
    before = logprobs(model, None)
    attachment = Rows(tokens=TOKENS, linear_rows=0.2).attach(model, "default", seed=0)
    assert_near(logprobs(model), before, 0.02)
    randomize(attachment, 0.3)
    unmerged = logprobs(model)
    attachment.merge()
    assert {parameter.dtype for parameter in model.hf.parameters()} == {torch.bfloat16}
    assert_near(logprobs(model, None), unmerged, 0.02)


def test_tokens_may_be_named_by_their_texts() -> None:
    attachment = Rows(tokens=("w9", 5, "<eos>")).attach(tiny_model("llama"), "default", seed=0)
    by_id = Rows(tokens=(9, 5, 2)).attach(tiny_model("llama"), "default", seed=0)
    for one, other in zip(attachment.trainables.values(), by_id.trainables.values(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("tokens", [("w5 w9",), ("nonsense",), ("",), (61,), (-1,), (5, "w5")])
def test_what_is_not_one_token_each_is_refused_with_the_field(tokens: tuple[int | str, ...]) -> None:
    with pytest.raises(RecipeError) as refused:
        Rows(tokens=tokens).attach(tiny_model("llama"), "default", seed=0)
    assert refused.value.field == "method.tokens"
    assert refused.value.mend


def test_no_rows_at_all_are_refused() -> None:
    with pytest.raises(RecipeError) as refused:
        Rows().attach(tiny_model("llama"), "default", seed=0)
    assert "method.linear_rows" in refused.value.mend


# ── rows of linear layers ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3", "falcon-new"])
def test_chosen_outputs_are_computed_by_the_trained_rows_and_the_others_by_the_frozen_ones(name: str) -> None:
    model, attachment = tuned(name, linear_rows=0.3)
    for place in model.anatomy.linears:
        layer = model.hf.get_submodule(place)
        x = torch.randn(5, layer.weight.shape[1], generator=torch.Generator().manual_seed(1))
        index = attachment.file_tensors()[f"{place}.rows.index"]
        expected = layer.base(x).index_copy(1, index, x @ attachment.trainables[f"{place}.rows.weight"].t())
        if layer.bias is not None:
            expected[:, index] += attachment.trainables[f"{place}.rows.bias"]
        with calling(Call(None, (Run(0, 5, "default"),))):
            assert_near(layer(x), expected)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_gradients_are_those_of_the_rows_of_the_dense_layers(name: str) -> None:
    dense = tiny_model(name)
    weights = {place: table_of(dense, place).requires_grad_(True) for place in dense.anatomy.linears}
    loss = dense.forward(batch_of(LENGTHS, dense.layout)).logprob_N.sum()
    expected = dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
    model = tiny_model(name)
    attachment = Rows(linear_rows=0.3).attach(model, "default", seed=0)
    trained = attachment.trainables
    loss = model.forward(batch_of(LENGTHS, model.layout), "default").logprob_N.sum()
    found = dict(zip(trained, torch.autograd.grad(loss, list(trained.values())), strict=True))
    for place, gradient in expected.items():
        index = attachment.file_tensors()[f"{place}.rows.index"]
        rows = (gradient.t() if name == "gpt2" else gradient)[index]
        assert_near(found[f"{place}.rows.weight"], rows)


def test_a_share_is_taken_of_the_rows_with_the_largest_norm_and_counts_k_times_i_plus_1() -> None:
    model = tiny_model("llama")
    attachment = Rows(linear_rows=0.25, targets=("k_proj", "up_proj")).attach(model, "default", seed=0)
    for layer in model.anatomy.layers:
        for ending, outputs in (("self_attn.k_proj", 16), ("mlp.up_proj", 40)):
            index = attachment.file_tensors()[f"{layer.name}.{ending}.rows.index"]
            norms = table_of(model, f"{layer.name}.{ending}").norm(dim=1)
            others = torch.ones(outputs, dtype=torch.bool).index_fill(0, index, False)
            assert len(index) == outputs // 4
            assert float(norms[index].min()) >= float(norms[others].max())
    assert attachment.num_trainable == 2 * (4 * 33 + 10 * 33)
    assert [group.decays for group in attachment.groups] == [True, False]


def test_rows_may_be_named_layer_by_layer() -> None:
    rows = {"0.self_attn.q_proj": (3,), "q_proj": (9, 1), "down_proj": (0, 31)}
    attachment = Rows(linear_rows=rows).attach(tiny_model("llama"), "default", seed=0)
    index = {key: t.tolist() for key, t in attachment.file_tensors().items() if key.endswith("rows.index")}
    assert index == {
        "model.layers.0.self_attn.q_proj.rows.index": [3],
        "model.layers.0.mlp.down_proj.rows.index": [0, 31],
        "model.layers.1.self_attn.q_proj.rows.index": [9, 1],
        "model.layers.1.mlp.down_proj.rows.index": [0, 31],
    }
    assert attachment.lowest_layer == 0
    assert Rows(linear_rows=0.1, layers=(1,)).attach(tiny_model("llama"), "default", seed=0).lowest_layer == 1


@pytest.mark.parametrize(
    ("rows", "error", "field"),
    [
        ({"q_proj": (32,)}, RecipeError, "method.linear_rows"),
        ({"embed_tokens": (3,)}, TargetNotFound, "method.targets"),
    ],
)
def test_rows_that_are_not_there_are_refused_with_the_field(
    rows: dict[str, tuple[int, ...]], error: type[RecipeError], field: str
) -> None:
    with pytest.raises(error) as refused:
        Rows(linear_rows=rows).attach(tiny_model("llama"), "default", seed=0)
    assert refused.value.field == field


@pytest.mark.parametrize(
    "settings",
    [
        {"tokens": (5, 5)},
        {"linear_rows": 0.0},
        {"linear_rows": 1.5},
        {"linear_rows": {"q_proj": ()}},
        {"linear_rows": {"q_proj": (-1,)}},
        {"linear_rows": {"q_proj": (4, 4)}},
    ],
)
def test_values_that_choose_no_rows_or_one_twice_are_refused_by_the_settings(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Rows.model_validate(settings)


# ── files ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def saved(folder: Path, attachment: Attachment) -> str:
    """The folder, with the adapter written into it as the loop leaves it."""
    FlatTrainables(attachment.groups, workers=1)
    folder.mkdir()
    attachment.write(folder, quiet)
    return str(folder)


@pytest.mark.parametrize("name", ["llama", *TIED])
def test_peft_computes_the_same_from_written_token_rows(name: str, tmp_path: Path) -> None:
    model, attachment = tuned(name, tokens=TOKENS)
    folder = saved(tmp_path / "a", attachment)
    loaded = PeftModel.from_pretrained(plain_model(name, plain_attention(name)), folder)
    assert_near(plain_logprobs(loaded, random_rows(LENGTHS)), logprobs(model))


def test_peft_computes_the_same_where_an_untied_head_has_rows_too(tmp_path: Path) -> None:
    model, attachment = tuned("llama", tokens=TOKENS, in_head=True)
    folder = saved(tmp_path / "a", attachment)
    loaded = PeftModel.from_pretrained(plain_model("llama"), folder)
    assert_near(plain_logprobs(loaded, random_rows(LENGTHS)), logprobs(model))


@pytest.mark.parametrize(
    ("name", "modules"),
    [("llama", None), ("llama", ["embed_tokens", "lm_head"]), ("gpt2", None), ("gemma2", None), ("opt", None)],
)
def test_rows_saved_by_peft_compute_the_same_here_and_again_in_peft(
    name: str, modules: list[str] | None, tmp_path: Path
) -> None:
    config = TrainableTokensConfig(task_type="CAUSAL_LM", token_indices=list(TOKENS), target_modules=modules)
    made = get_peft_model(plain_model(name, plain_attention(name)), config).eval()
    for index, parameter in enumerate(p for p in made.parameters() if p.requires_grad):
        parameter.data.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)) * 0.3)
    made.save_pretrained(tmp_path / "a")
    expected = plain_logprobs(made, random_rows(LENGTHS)).detach()
    model = tiny_model(name)
    attachment = Rows(begin_from=str(tmp_path / "a")).attach(model, "default", seed=0)
    assert_near(logprobs(model), expected)
    loaded = PeftModel.from_pretrained(plain_model(name, plain_attention(name)), saved(tmp_path / "b", attachment))
    assert_near(plain_logprobs(loaded, random_rows(LENGTHS)), expected)


@pytest.mark.parametrize(
    "settings",
    [
        {"linear_rows": {"q_proj": (3, 1)}, "layers": (1,)},
        {"linear_rows": 0.2, "targets": ("c_proj", "q_proj")[1:]},
        {"linear_rows": 0.2, "tokens": TOKENS, "in_head": True},
        {"tokens": ("w7", 9)},
    ],
)
def test_what_is_written_is_read_back_whatever_rows_it_has(settings: dict[str, Any], tmp_path: Path) -> None:
    model, attachment = tuned("llama", **settings)
    folder = saved(tmp_path / "a", attachment)
    fresh = tiny_model("llama")
    again = Rows(begin_from=folder).attach(fresh, "default", seed=9)
    assert_near(logprobs(fresh), logprobs(model), 1e-7)
    first, second = attachment.file_tensors(), again.file_tensors()
    assert set(first) == set(second)
    assert all(torch.equal(first[key], second[key]) for key in first)
    Rows(begin_from=folder, **settings).attach(tiny_model("llama"), "default", seed=9)  # the same shape, stated


@pytest.mark.parametrize(
    ("field", "value"), [("tokens", (5,)), ("linear_rows", 0.5), ("in_head", True), ("tokens", ("w8", "w7"))]
)
def test_a_recipe_that_states_other_rows_than_the_adapter_is_refused_by_field(
    field: str, value: Any, tmp_path: Path
) -> None:
    _, attachment = tuned("llama", tokens=("w7", 9))
    folder = saved(tmp_path / "a", attachment)
    with pytest.raises(RecipeError) as refused:
        Rows(begin_from=folder, **{field: value}).attach(tiny_model("llama"), "default", seed=0)
    assert refused.value.field == f"method.{field}"


@pytest.mark.parametrize("index", [[0, 99], [-1, 2], [4, 4]])
def test_a_file_whose_rows_cannot_be_is_refused(index: list[int], tmp_path: Path) -> None:
    _, attachment = tuned("llama", linear_rows={"q_proj": (3, 1)})
    folder = saved(tmp_path / "a", attachment)
    weights = tmp_path / "a" / "luthier_adapter.safetensors"
    tensors: dict[str, Tensor] = load_file(weights)
    tensors["model.layers.0.self_attn.q_proj.rows.index"] = torch.tensor(index)
    save_file(tensors, weights)
    with pytest.raises(RecipeError, match="rows"):
        Rows(begin_from=folder).attach(tiny_model("llama"), "default", seed=0)


def test_a_folder_without_an_adapter_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        Rows(begin_from=str(tmp_path)).attach(tiny_model("llama"), "default", seed=0)
