"""LN-tuning: the norms that train, what they compute with other gains, and their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from models.rows import batch_of, plain_logprobs, random_rows
from models.tiny import CONFIGS, plain_model, tiny_model
from models.tuned import LENGTHS, logprobs, plain_attention, quiet, randomize
from near import assert_apart, assert_near
from peft import LNTuningConfig, PeftModel, get_peft_model
from torch import Tensor

from luthier.errors import RecipeError, TargetNotFound
from luthier.methods import Attachment, LNTuning
from luthier.models.call import Call, Run, calling
from luthier.models.language_model import LanguageModel
from luthier.training.flat import FlatTrainables

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Unable to fetch remote file"),
    pytest.mark.filterwarnings("ignore:Could not find a config file"),
    pytest.mark.filterwarnings("ignore:Unsupported layer type"),  # peft says so of every norm but LayerNorm
]

PEFT_FAMILIES = ("llama", "qwen3", "gemma2", "gpt2", "gpt_neox", "opt", "opt-norm-after", "phi", "falcon-new")


def tuned(name: str, **settings: Any) -> tuple[LanguageModel, Attachment]:
    """A tiny model with random gains and biases."""
    model = tiny_model(name)
    attachment = LNTuning(**settings).attach(model, "default", seed=0)
    randomize(attachment, 0.5)
    return model, attachment


def trained_norms(attachment: Attachment) -> set[str]:
    """The names of the norms that train."""
    return {key.partition(".ln_tuning_layers.")[0] for key in attachment.trainables}


def of_norm(model: LanguageModel, norm: str, x: Tensor) -> Tensor:
    """What the adapted norm gives."""
    with calling(Call(None, (Run(0, len(x), "default"),))):
        y: Tensor = model.hf.get_submodule(norm)(x)
    return y


@pytest.mark.parametrize(("name", "offset"), [("llama", 0.0), ("olmo2", 0.0), ("gemma2", 1.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_rms_norm_multiplies_by_the_trained_gain(name: str, offset: float, dtype: torch.dtype) -> None:
    model, attachment = tuned(name)
    x = (torch.randn(5, 32, generator=torch.Generator().manual_seed(0)) * 3).to(dtype)
    for norm in trained_norms(attachment):
        gain = attachment.trainables[f"{norm}.ln_tuning_layers.weight"].detach() + offset
        wide, eps = x.double(), model.hf.get_submodule(norm).eps
        expected = wide / (wide.square().mean(-1, keepdim=True) + eps).sqrt() * gain
        y = of_norm(model, norm, x)
        assert y.dtype == dtype
        assert_near(y, expected, 1e-5 if dtype == torch.float32 else 1e-2)


def test_a_layer_norm_multiplies_by_the_trained_gain_and_adds_the_trained_bias() -> None:
    model, attachment = tuned("gpt2")
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0)) * 3 + 1
    for norm in trained_norms(attachment):
        gain, bias = (attachment.trainables[f"{norm}.ln_tuning_layers.{part}"] for part in ("weight", "bias"))
        wide = x.double() - x.double().mean(-1, keepdim=True)
        expected = wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * gain + bias
        assert_near(of_norm(model, norm, x), expected)
        assert of_norm(model, norm, x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("llama", (2 * 2 + 1) * 32),
        ("qwen3", (2 * 2 + 1) * 32),
        ("gemma2", (4 * 2 + 1) * 32),
        ("gpt2", 2 * (2 * 2 + 1) * 32),
        ("falcon-new", 2 * (2 * 2 + 1) * 32),
        ("opt", 2 * (2 * 2 + 1) * 32),
        ("opt-norm-after", 2 * (2 * 2) * 32),
    ],
)
def test_the_count_is_the_width_times_the_norms_and_twice_where_they_have_a_bias(name: str, count: int) -> None:
    assert LNTuning().attach(tiny_model(name), "default", seed=0).num_trainable == count


@pytest.mark.parametrize("name", ["qwen3", "olmo2", "phi", "gemma3_text"])
def test_norms_of_queries_and_keys_train_only_where_they_are_named(name: str) -> None:
    inside = {norm for norm in tiny_model(name).anatomy.norms if "self_attn" in norm}
    assert len(inside) == 4
    assert not trained_norms(LNTuning().attach(tiny_model(name), "default", seed=0)) & inside
    endings = tuple({norm.rpartition(".")[2] for norm in inside})
    assert trained_norms(LNTuning(targets=endings).attach(tiny_model(name), "default", seed=0)) == inside


@pytest.mark.parametrize("name", ["qwen3", "olmo2", "phi", "gemma3_text"])
def test_norms_of_queries_and_keys_take_each_tokens_own_adapter_too(name: str) -> None:
    model = tiny_model(name)
    endings = tuple({norm.rpartition(".")[2] for norm in model.anatomy.norms if "self_attn" in norm})
    for index, adapter in enumerate(("one", "two")):
        attachment = LNTuning(targets=endings).attach(model, adapter, seed=0)
        randomize(attachment, 1.0 + index)
    alone = {adapter: logprobs(model, adapter) for adapter in ("one", "two", None)}
    batch = batch_of(LENGTHS, model.layout)
    whose = ("two", None, "one", "two")
    mixed = model.forward(batch, whose).logprob_N
    starts = torch.tensor([segment.start for segment in batch.segments[1:]])
    row_N = torch.bucketize(batch.targets.source_N, starts, right=True)
    for row, adapter in enumerate(whose):
        assert_near(mixed[row_N == row], alone[adapter][row_N == row])
    assert_apart(alone["one"], alone["two"])


def test_chosen_layers_leave_the_final_norm_out_unless_it_is_named() -> None:
    attachment = LNTuning(layers=(1,)).attach(tiny_model("llama"), "default", seed=0)
    inside = {"model.layers.1.input_layernorm", "model.layers.1.post_attention_layernorm"}
    assert trained_norms(attachment) == inside
    assert attachment.lowest_layer == 1
    attachment = LNTuning(targets="model.norm").attach(tiny_model("llama"), "default", seed=0)
    assert trained_norms(attachment) == {"model.norm"}
    assert attachment.lowest_layer == 2


def test_what_is_no_norm_is_refused_and_the_error_lists_the_norms() -> None:
    with pytest.raises(TargetNotFound) as refused:
        LNTuning(targets=("q_proj",)).attach(tiny_model("llama"), "default", seed=0)
    assert "post_attention_layernorm" in refused.value.mend
    assert refused.value.field == "method.targets"


def test_norms_without_a_gain_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model_type, values = CONFIGS["opt"]
    monkeypatch.setitem(CONFIGS, "opt-bare", (model_type, {**values, "layer_norm_elementwise_affine": False}))
    with pytest.raises(RecipeError, match="gain") as refused:
        LNTuning().attach(tiny_model("opt-bare"), "default", seed=0)
    assert refused.value.field == "method.kind"


def test_gains_do_not_decay() -> None:
    assert [group.decays for group in LNTuning().attach(tiny_model("gpt2"), "default", seed=0).groups] == [False]


def test_a_half_precision_base_keeps_fp32_gains_that_move_by_less_than_its_spacing() -> None:
    model = tiny_model("llama", dtype=torch.bfloat16)
    attachment = LNTuning().attach(model, "default", seed=0)
    before = logprobs(model)
    assert_near(before, logprobs(model, None), 0.02)
    for gain in attachment.trainables.values():
        assert gain.dtype == torch.float32
        moved = gain.detach() + 1e-4
        assert not torch.equal(moved, gain)
        gain.data.copy_(moved)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_merging_writes_gain_and_bias_as_they_are(name: str) -> None:
    model, attachment = tuned(name)
    trained = {key.replace("ln_tuning_layers.", ""): tensor.clone() for key, tensor in attachment.trainables.items()}
    attachment.merge()
    assert all(torch.equal(model.hf.get_parameter(key), tensor) for key, tensor in trained.items())


# ── files ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", PEFT_FAMILIES)
def test_peft_computes_the_same_from_a_written_adapter(name: str, tmp_path: Path) -> None:
    model, attachment = tuned(name)
    FlatTrainables(attachment.groups, workers=1)  # as the loop leaves them: views of one vector
    attachment.write(tmp_path, quiet)
    loaded = PeftModel.from_pretrained(plain_model(name, plain_attention(name)), tmp_path)
    assert_near(plain_logprobs(loaded, random_rows(LENGTHS)), logprobs(model))


@pytest.mark.parametrize(
    ("name", "modules"),
    [
        ("llama", None),
        ("llama", ["post_attention_layernorm"]),
        ("qwen3", ["q_norm", "input_layernorm"]),
        ("gemma2", ["pre_feedforward_layernorm", "model.norm"]),
        ("gpt2", ["ln_1", "ln_f"]),
        ("opt-norm-after", ["final_layer_norm"]),
    ],
)
def test_an_adapter_saved_by_peft_computes_the_same_here_and_again_in_peft(
    name: str, modules: list[str] | None, tmp_path: Path
) -> None:
    config = LNTuningConfig(task_type="CAUSAL_LM", target_modules=modules)
    made = get_peft_model(plain_model(name, plain_attention(name)), config).eval()
    for index, parameter in enumerate(p for p in made.parameters() if p.requires_grad):
        parameter.data.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)) * 0.5)
    made.save_pretrained(tmp_path / "a")
    expected = plain_logprobs(made, random_rows(LENGTHS)).detach()
    model = tiny_model(name)
    attachment = LNTuning(begin_from=str(tmp_path / "a")).attach(model, "default", seed=0)
    assert_near(logprobs(model), expected)
    (tmp_path / "b").mkdir()
    attachment.write(tmp_path / "b", quiet)
    loaded = PeftModel.from_pretrained(plain_model(name, plain_attention(name)), tmp_path / "b")
    assert_near(plain_logprobs(loaded, random_rows(LENGTHS)), expected)


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    _, attachment = tuned("gpt2")
    attachment.write(tmp_path, quiet)
    with pytest.raises(RecipeError, match=r"transformer\.h\.0"):
        LNTuning(begin_from=str(tmp_path)).attach(tiny_model("llama"), "default", seed=0)
