"""Heads for classes that train beside adapters: their own for each, merged, in peft's files; and counts for BERT and RoBERTa."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from methods.by_peft import MEANT
from models.rows import class_rows, plain_class_logprobs
from models.tiny import ENCODERS, plain_model, tiny_model, tiny_tokenizer
from models.tuned import LENGTHS, logprobs, quiet, randomize
from near import assert_apart, assert_near
from peft import LNTuningConfig, LoraConfig, PeftConfig, PeftModel, PrefixTuningConfig, TaskType, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification, BertConfig, PreTrainedConfig, RobertaConfig

from luthier.errors import RecipeError
from luthier.methods import (
    IA3,
    OFT,
    AdaMix,
    AdapterMethod,
    BitFit,
    Full,
    Houlsby,
    LNTuning,
    LoRA,
    Method,
    PrefixTuning,
    PromptTuning,
    Rows,
    TopLayers,
    VeRA,
)
from luthier.methods.adamix import AdapterHost
from luthier.models.families import family_of
from luthier.models.language_model import Identity, LanguageModel
from luthier.models.reading import read_anatomy

pytestmark = [*MEANT, pytest.mark.filterwarnings("ignore:Unsupported layer type")]  # peft warns of any norm

WHOLE = {"bert": ["classifier"], "roberta": ["classifier"], "llama": ["score"]}
HEADS = {
    "bert": {"classifier.weight", "classifier.bias"},
    "roberta": {f"classifier.{layer}.{part}" for layer in ("dense", "out_proj") for part in ("weight", "bias")},
    "llama": {"score.weight"},
}


def of_classes(name: str) -> LanguageModel:
    return tiny_model(name, purpose="classes")


def plain_of_classes(name: str):
    return plain_model(name, purpose="classes")


def said_by(hf: object, name: str) -> Tensor:
    """What a model of transformers or peft says of the usual rows, each alone."""
    return plain_class_logprobs(hf, class_rows(LENGTHS, of_classes(name).anatomy.family.pooled)).detach()


# ── beside an adapter ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", HEADS)
def test_a_new_head_trains_whole_in_groups_of_its_own_and_is_counted_apart(name: str) -> None:
    model = of_classes(name)
    attachment = LoRA(rank=2, lr_ratio=16).attach(model, "default", seed=0)
    assert HEADS[name] < set(attachment.trainables)
    in_head = sum(attachment.trainables[key].numel() for key in HEADS[name])
    assert attachment.num_in_head == in_head
    alone = LoRA(rank=2).attach(tiny_model(name, purpose="classes"), "default", seed=0)
    assert attachment.num_trainable - attachment.num_in_head == alone.num_trainable - alone.num_in_head
    for group in attachment.groups:
        assert group.lr_factor == 1 or not HEADS[name] & set(group.tensors)
        assert all(group.decays == (tensor.dim() > 1) for key, tensor in group.tensors.items() if key in HEADS[name])


def test_a_head_that_the_base_has_stays_frozen() -> None:
    model = of_classes("bert")
    model.new_head = ()
    attachment = LoRA(rank=2).attach(model, "default", seed=0)
    assert attachment.num_in_head == 0
    assert not HEADS["bert"] & set(attachment.trainables)


def test_each_adapter_has_its_own_head() -> None:
    model = of_classes("bert")
    first = LoRA(rank=2).attach(model, "first", seed=0)
    before = logprobs(model, "first")
    randomize(BitFit().attach(model, "second", seed=0))
    assert_near(logprobs(model, "first"), before, 1e-6)
    assert_apart(logprobs(model, "second"), before)
    randomize(first)
    first.merge()
    assert "second" in model.hf.get_submodule("classifier").branches
    assert "first" not in model.hf.get_submodule("classifier").branches


@pytest.mark.parametrize("method", [Full(layers=(1,), train_head=False), TopLayers(num_layers=1, include_head=False)])
@pytest.mark.parametrize("name", ["bert", "roberta", "llama"])
def test_where_the_base_trains_a_new_head_trains_with_it_in_any_case(method: Method, name: str) -> None:
    attachment = method.attach(of_classes(name), "default", seed=0)
    assert HEADS[name] <= set(attachment.trainables)
    assert attachment.num_in_head == sum(attachment.trainables[key].numel() for key in HEADS[name])
    kept = of_classes(name)
    kept.new_head = ()
    assert not HEADS[name] & set(method.attach(kept, "default", seed=0).trainables)


def test_a_method_cannot_be_at_a_layer_of_the_new_head() -> None:
    with pytest.raises(RecipeError, match="trains whole") as caught:
        LoRA(targets=("query", "classifier")).attach(of_classes("bert"), "default", seed=0)
    assert caught.value.field == "method.targets"


def test_rows_of_tokens_are_not_those_of_a_head_over_classes() -> None:
    with pytest.raises(RecipeError, match="no rows for tokens") as caught:
        Rows(tokens=(3, 4), in_head=True).attach(of_classes("bert"), "default", seed=0)
    assert caught.value.field == "method.in_head"


# ── where methods sit in an encoder ─────────────────────────────────────────────────────────────────────────────────


def test_bitfit_trains_every_bias_the_poolers_too() -> None:
    model = of_classes("bert")
    biases = {key for key, _ in model.hf.named_parameters() if key.endswith(".bias")}
    assert {key for key in BitFit().attach(model, "default", seed=0).trainables if key.endswith("bias")} == biases


def test_ln_tuning_trains_the_norm_of_the_embeddings_too_and_needs_a_backward_pass_to_it() -> None:
    model = of_classes("bert")
    attachment = LNTuning().attach(model, "default", seed=0)
    assert len(attachment.layers) == 2 * 2 + 1
    assert attachment.num_trainable - attachment.num_in_head == 2 * 32 * (2 * 2 + 1)
    assert attachment.lowest_layer is None
    assert LNTuning(layers=(1,)).attach(of_classes("bert"), "default", seed=0).lowest_layer == 1


def test_ia3_scales_keys_values_and_the_input_of_the_feed_forwards_last_layer_alone() -> None:
    attachment = IA3().attach(of_classes("bert"), "default", seed=0)
    sites = {key.removeprefix("bert.encoder.layer.0.") for key in attachment.layers if ".layer.0." in key}
    assert sites == {"attention.self.key", "attention.self.value", "output.dense"}
    assert attachment.num_trainable - attachment.num_in_head == 2 * (2 * 32 + 40)


# ── peft's files ────────────────────────────────────────────────────────────────────────────────────────────────────

METHODS: list[tuple[AdapterMethod, str]] = [
    (LoRA(rank=3, alpha=5), "bert"),
    (LoRA(rank=3, alpha=5), "roberta"),
    (LoRA(rank=3, alpha=5), "llama"),
    (LoRA(rank=3, targets=("query", "value")), "bert"),
    (IA3(), "bert"),
    (LNTuning(), "bert"),
    (OFT(block_size=8), "roberta"),
    (PrefixTuning(num_virtual_tokens=4), "bert"),
    (PrefixTuning(num_virtual_tokens=4), "roberta"),
]


@pytest.mark.parametrize(("method", "name"), METHODS)
def test_peft_reads_the_adapter_and_its_head_as_the_same_function(
    method: AdapterMethod, name: str, tmp_path: Path
) -> None:
    model = of_classes(name)
    attachment = method.attach(model, "default", seed=0)
    randomize(attachment)
    attachment.write(tmp_path, quiet)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["task_type"], config["modules_to_save"]) == ("SEQ_CLS", WHOLE[name])
    prefix = "base_model." if isinstance(method, PrefixTuning) else "base_model.model."
    keys = set(load_file(tmp_path / "adapter_model.safetensors"))
    assert {prefix + key for key in HEADS[name]} <= keys
    loaded = PeftModel.from_pretrained(plain_of_classes(name), tmp_path).eval()
    assert_near(said_by(loaded, name), logprobs(model))


CONFIGS: list[tuple[Callable[[], PeftConfig], type[AdapterMethod], str]] = [
    (
        lambda: LoraConfig(r=3, lora_alpha=7, target_modules=["query", "value"], task_type=TaskType.SEQ_CLS),
        LoRA,
        "bert",
    ),
    (lambda: LoraConfig(r=3, target_modules=["key"], task_type=TaskType.SEQ_CLS), LoRA, "roberta"),
    (lambda: LoraConfig(r=3, target_modules=["q_proj"], task_type=TaskType.SEQ_CLS), LoRA, "llama"),
    (lambda: LNTuningConfig(target_modules=["LayerNorm"], task_type=TaskType.SEQ_CLS), LNTuning, "bert"),
    (lambda: PrefixTuningConfig(num_virtual_tokens=4, task_type=TaskType.SEQ_CLS), PrefixTuning, "bert"),
]


@pytest.mark.parametrize(("config", "kind", "name"), CONFIGS)
def test_an_adapter_of_peft_is_read_with_its_head(
    config: Callable[[], PeftConfig], kind: type[AdapterMethod], name: str, tmp_path: Path
) -> None:
    with torch.random.fork_rng():
        tuned = get_peft_model(plain_of_classes(name), config()).eval()
    for index, parameter in enumerate(p for p in tuned.parameters() if p.requires_grad):
        parameter.data.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)) * 0.1)
    tuned.save_pretrained(tmp_path)
    model = of_classes(name)
    method = kind.model_validate({"from": str(tmp_path)})
    attachment = method.attach(model, "default", seed=0)
    assert attachment.num_in_head > 0
    assert_near(logprobs(model), said_by(tuned, name))


def test_a_head_of_other_classes_is_refused_with_both_shapes(tmp_path: Path) -> None:
    attachment = LoRA(rank=2).attach(of_classes("bert"), "default", seed=0)
    attachment.head.tensors["classifier.weight"].data = torch.zeros(5, 32)
    attachment.write(tmp_path, quiet)
    with pytest.raises(RecipeError, match=r"\(5, 32\).*\(3, 32\)") as caught:
        LoRA(begin_from=str(tmp_path)).attach(of_classes("bert"), "default", seed=0)
    assert "objective.classes" in caught.value.mend


@pytest.mark.parametrize("method", [LoRA(rank=2), PromptTuning(num_virtual_tokens=3), BitFit(missing="partial")])
def test_an_adapter_with_a_head_is_refused_by_a_model_that_writes(method: AdapterMethod, tmp_path: Path) -> None:
    method.attach(of_classes("llama"), "default", seed=0).write(tmp_path, quiet)
    with pytest.raises(RecipeError, match="no head of this model for classes") as caught:
        method.continued(tmp_path).attach(tiny_model("llama"), "default", seed=0)
    assert caught.value.mend


def test_an_adapter_that_learned_to_write_begins_a_classifier_with_a_fresh_head(tmp_path: Path) -> None:
    writer = LoRA(rank=2).attach(tiny_model("llama"), "default", seed=0)
    randomize(writer)
    writer.write(tmp_path, quiet)
    model = of_classes("llama")
    attachment = LoRA(begin_from=str(tmp_path)).attach(model, "default", seed=0)
    key = "model.layers.0.self_attn.q_proj.lora_A.weight"
    assert torch.equal(attachment.trainables[key], writer.trainables[key])
    assert torch.equal(attachment.trainables["score.weight"], model.hf.get_submodule("score").base.weight)


# ── whole models ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ENCODERS)
def test_a_fully_tuned_encoder_is_written_as_transformers_reads_it(name: str, tmp_path: Path) -> None:
    model = of_classes(name)
    attachment = Full().attach(model, "default", seed=0)
    for index, parameter in enumerate(attachment.trainables.values()):
        drawn = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
        parameter.data.add_(drawn * 0.05)
    attachment.write(tmp_path, quiet)
    plain, info = AutoModelForSequenceClassification.from_pretrained(
        tmp_path, output_loading_info=True, dtype=torch.float32
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    rows = class_rows(LENGTHS, model.anatomy.family.pooled)
    assert_near(plain_class_logprobs(plain.eval(), rows).detach(), logprobs(model, None))
    assert_apart(logprobs(of_classes(name), None), logprobs(model, None))


# ── counts ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def without_weights(config: PreTrainedConfig) -> LanguageModel:
    """A model of published size that has shapes alone."""
    with torch.device("meta"):
        hf = AutoModelForSequenceClassification.from_config(config).requires_grad_(False)
    anatomy = read_anatomy(hf, family_of(config.model_type))
    return LanguageModel(hf, tiny_tokenizer(), anatomy, Identity("meta", ""))


LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
COUNTS: list[tuple[Method, PreTrainedConfig, int]] = [
    (LoRA(rank=8, targets=("query", "value")), BertConfig(), 294_912),
    (VeRA(rank=1024, targets=("query", "value")), RobertaConfig(), 43_008),
    (VeRA(rank=256, targets=("query", "value")), RobertaConfig(**LARGE), 61_440),
    (AdaMix(experts=4, host=AdapterHost(width=16)), RobertaConfig(**LARGE), 1_992_192),
    (Houlsby(width=48, sublayers=("feedforward",)), BertConfig(), 894_528),  # what AdaMix comes to there
    (BitFit(), BertConfig(), 12 * 11 * 768 + 2 * 768),  # eleven D a layer, the embeddings' norm and the pooler
    (LNTuning(), BertConfig(), 2 * 768 * 25),
    (IA3(), BertConfig(), 12 * (2 * 768 + 3072)),
]


@pytest.mark.parametrize(("method", "config", "count"), COUNTS)
def test_published_counts_of_trained_numbers(method: Method, config: PreTrainedConfig, count: int) -> None:
    attachment = method.attach(without_weights(config), "default", seed=0)
    assert attachment.num_trainable == count
