"""Tokens that a model did not have: rows near the mean of the others, trained beside the adapter, read by peft, merged."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from near import assert_apart, assert_near
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_model import write_tiny_encoder, write_tiny_encoder_decoder
from tiny_runs import Cut, begin, cut_after, go_on, nothing, outcome, recipe_values, write_rows
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from luthier import api
from luthier.errors import RecipeError
from luthier.methods import ADAPTER, Full, LoRA
from luthier.methods.rows_files import ROWS_FILE
from luthier.models.language_model import LanguageModel
from luthier.models.loading import load_model
from luthier.models.new_tokens import grown_size
from luthier.models.settings import ModelSettings
from luthier.planner.alone import trace_all
from luthier.planner.request import work_of
from luthier.quantization.settings import QuantizationSettings
from luthier.recipe import make_recipe
from luthier.recipe.loading import recipe_of_run
from luthier.studies.exporting import export_run
from luthier.studies.planning import read_request
from luthier.tuned import load_run
from luthier.types import Batch, Segment, Targets

TOKENS = ("<scratch>", "<|mode|>", "<mark>")
PROMPT = "Where is <scratch> the lamp<|mode|> now?"


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """The tiny model with a head of its own."""
    folder = tmp_path_factory.mktemp("models") / "untied"
    shutil.copytree(tiny_model, folder)
    config = LlamaConfig.from_pretrained(folder)
    config.tie_word_embeddings = False
    with torch.random.fork_rng():
        torch.manual_seed(1)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["tied", "untied"])
def base(request: pytest.FixtureRequest, tiny_model: Path, untied: Path) -> Path:
    return tiny_model if request.param == "tied" else untied


@pytest.fixture(scope="module")
def run(base: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of LoRA over the base with new tokens."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    begin(values_of(base, rows), folder)
    return folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_rows(tmp_path_factory.mktemp("rows") / "orders.jsonl", 24)
    path.write_text(path.read_text().replace("the lamp", "<scratch> the lamp").replace("its total", "<mark> its total"))
    return path


def loaded(folder: Path, tokens: tuple[str, ...] = TOKENS, **others: Any) -> LanguageModel:
    return load_model(ModelSettings(name=str(folder), add_tokens=tokens), nothing, **others)


def values_of(folder: Path, rows: Path, **parts: Any) -> dict[str, Any]:
    values = recipe_values(folder, rows, **parts)
    return {**values, "model": {"name": str(folder), "add_tokens": list(TOKENS)}}


def logits_of(model: LanguageModel, adapter: str | None, text: str = PROMPT) -> torch.Tensor:
    tokens = torch.tensor([model.tokenizer(text)["input_ids"]])
    length = tokens.shape[1]
    empty = torch.zeros(length, dtype=torch.int64)
    targets = Targets(torch.arange(length), tokens[0], torch.ones(length), empty, torch.zeros_like(tokens[0]))
    batch = Batch("packed", tokens, torch.arange(length)[None], None, (Segment(0, length),), (0,), targets)
    with torch.no_grad():
        outputs = model.forward(batch, adapter)
        return outputs.head.logits(outputs.hidden_ND)


def test_new_rows_begin_near_the_mean_of_the_known_ones_and_the_others_stay(base: Path):
    plain, grown = loaded(base, ()), loaded(base)
    num_known, ids = len(plain.tokenizer), grown.new_tokens
    assert ids == (num_known, num_known + 1, num_known + 2)
    assert grown.vocab_size == grown_size(plain.vocab_size, num_known + 3)
    assert grown.hf.config.vocab_size == grown.vocab_size
    assert grown.anatomy.is_head_tied == plain.anatomy.is_head_tied
    for name in (plain.anatomy.embedding, plain.anatomy.head):
        before, after = (model.hf.get_submodule(name).get_parameter("weight") for model in (plain, grown))
        assert torch.equal(after[:num_known], before[:num_known])
        offset = (after[list(ids)] - before[:num_known].mean(0)) / before[:num_known].std(0)
        assert 0.05 < float(offset.std()) < 0.15
        assert torch.unique(after[list(ids)], dim=0).shape[0] == 3
    assert grown.tokenizer.convert_ids_to_tokens(list(ids)) == list(TOKENS)
    assert grown.tokenizer("a<mark>b")["input_ids"].count(ids[2]) == 1


def test_a_new_row_depends_on_its_token_and_the_seed_alone(tiny_model: Path):
    def row(tokens: tuple[str, ...], seed: int) -> torch.Tensor:
        before = torch.random.get_rng_state()
        model = loaded(tiny_model, tokens, seed=seed)
        assert torch.equal(torch.random.get_rng_state(), before)
        weight = model.hf.get_submodule(model.anatomy.embedding).get_parameter("weight")
        return weight[model.tokenizer.convert_tokens_to_ids("<mark>")]

    first = row(TOKENS, 0)
    assert torch.equal(first, row(("<mark>", "<other>"), 0))
    assert not torch.equal(first, row(TOKENS, 1))


def test_a_round_number_of_rows_stays_round_and_spare_rows_are_used():
    assert (grown_size(128, 131), grown_size(128, 100), grown_size(100, 103)) == (192, 128, 103)


def test_identities_tell_models_with_other_tokens_apart(tiny_model: Path):
    found = {
        loaded(tiny_model, tokens, seed=seed).identity.sha256 for tokens, seed in (((), 0), (TOKENS, 0), (TOKENS, 1))
    }
    assert len(found) == 3


def test_the_rows_train_beside_lora_and_nothing_else_of_the_tables_moves(base: Path, run: Path):
    start, tuned = loaded(base, seed=7), load_run(run, nothing)
    attachment = LoRA(rank=2).attach(start, ADAPTER, 7)
    names = [start.anatomy.embedding] + [start.anatomy.head] * (not start.anatomy.is_head_tied)
    assert set(attachment.new_rows.tensors) == set(names)
    assert attachment.lowest_layer is None
    moved = LoRA(rank=2).continued(run).attach(loaded(base, seed=7), ADAPTER, 7)
    for name in names:
        before, after = (each.new_rows.tensors[name].detach() for each in (attachment, moved))  # type: ignore[attr-defined]
        assert not torch.equal(after[0], before[0]), "its rows are read"
        assert not torch.equal(after[2], before[2]), "its rows are read and written"
    assert torch.equal(logits_of(tuned, None), logits_of(start, None)), "the base is as it was"
    assert not torch.equal(logits_of(tuned, ADAPTER), logits_of(start, None))


@pytest.fixture(scope="module")
def run_of(base: Path, rows: Path, run: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The same of other methods, by their kind."""

    def begun(kind: str) -> Path:
        if kind == "lora":
            return run
        folder = tmp_path_factory.mktemp("runs") / kind
        begin({**values_of(base, rows), "method": {"kind": kind, "rank": 2}}, folder)
        return folder

    return begun


@pytest.mark.parametrize("kind", ["lora", "dora", "pissa"])
def test_peft_reads_the_exported_adapter_over_the_resized_base_and_computes_the_same(
    kind: str, base: Path, run_of: Callable[[str], Path], tmp_path: Path
):
    run, out = run_of(kind), tmp_path / "out"
    export_run(run, recipe_of_run(run), out, nothing, to="peft")
    ours = load_run(run, nothing)
    tokenizer = AutoTokenizer.from_pretrained(out)
    theirs = AutoModelForCausalLM.from_pretrained(base)
    theirs.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    theirs = PeftModel.from_pretrained(theirs, out).eval()
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    assert ids[0].tolist() == ours.tokenizer(PROMPT)["input_ids"]
    with torch.no_grad():
        logits = theirs(input_ids=ids).logits[0]
    num = len(tokenizer)
    assert_near(logits_of(ours, ADAPTER)[:, :num], logits[:, :num])
    assert_apart(logits_of(ours, ADAPTER)[:, :num], logits_of(ours, None)[:, :num])


def test_an_adapter_with_rows_that_peft_saved_computes_the_same_here(base: Path, tmp_path: Path):
    model = loaded(base)
    ids, is_tied = list(model.new_tokens), model.anatomy.is_head_tied
    theirs = AutoModelForCausalLM.from_pretrained(base)
    theirs.resize_token_embeddings(model.vocab_size, mean_resizing=False)
    places = ids if is_tied else {"embed_tokens": ids, "lm_head": ids}
    config = LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=places, init_lora_weights=False)
    theirs = get_peft_model(theirs, config).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "trainable_tokens" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(len(name)))
        logits = theirs(input_ids=torch.tensor([model.tokenizer(PROMPT)["input_ids"]])).logits[0]
    with pytest.warns(UserWarning, match="save_embedding_layers"):  # it saves the whole frozen table beside its rows
        theirs.save_pretrained(tmp_path)
    LoRA(begin_from=str(tmp_path)).attach(model, ADAPTER, 0)
    num = len(model.tokenizer)  # the rows that round the tables off are no tokens
    assert_near(logits_of(model, ADAPTER)[:, :num], logits[:, :num])


def test_the_merged_model_has_the_tokens_and_computes_the_same(run: Path, tmp_path: Path):
    export_run(run, recipe_of_run(run), tmp_path / "out", nothing)
    ours, merged = load_run(run, nothing), loaded(tmp_path / "out", ())
    assert merged.anatomy.is_head_tied == ours.anatomy.is_head_tied
    assert_near(logits_of(merged, None), logits_of(ours, ADAPTER))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        logits = theirs(**tokenizer(PROMPT, return_tensors="pt", return_token_type_ids=False)).logits[0]
    assert_near(logits, logits_of(merged, None))


@pytest.mark.parametrize("method", [{"kind": "ia3"}, {"kind": "houlsby", "width": 4}], ids=["ia3", "houlsby"])
def test_rows_beside_other_methods_are_in_a_file_of_their_own_and_merge(
    method: dict[str, Any], base: Path, rows: Path, tmp_path: Path
):
    said: list[str] = []
    begin({**values_of(base, rows), "method": method}, tmp_path / "run", announce=said.append)
    assert any("file of their own" in sentence for sentence in said)
    assert (tmp_path / "run" / "adapter" / ROWS_FILE).is_file()
    ours = load_run(tmp_path / "run", nothing)
    assert not torch.equal(logits_of(ours, ADAPTER), logits_of(ours, None))
    onward = {**values_of(base, rows), "method": {"kind": method["kind"], "from": str(tmp_path / "run")}}
    begin(onward, tmp_path / "second")
    if method["kind"] == "houlsby":
        return
    export_run(tmp_path / "run", recipe_of_run(tmp_path / "run"), tmp_path / "out", nothing)
    merged = loaded(tmp_path / "out", ())
    assert_near(logits_of(merged, None), logits_of(ours, ADAPTER))


STACK = {"kind": "stack", "parts": [{"kind": "ia3"}, {"kind": "prompt-tuning", "num_virtual_tokens": 2}]}


@pytest.mark.parametrize(
    "method",
    [{"kind": "lora", "rank": 2}, {"kind": "full"}, {"kind": "adalora", "init_rank": 3, "target_rank": 2}, STACK],
    ids=["lora", "full", "adalora", "stack"],
)
def test_a_resumed_run_keeps_the_rows(method: dict[str, Any], tiny_model: Path, rows: Path, tmp_path: Path):
    values = {**values_of(tiny_model, rows), "method": method}
    begin(values, tmp_path / "whole")
    with pytest.raises(Cut):
        begin(values, tmp_path / "cut", cut_after(3))
    go_on(tmp_path / "cut")
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


def test_full_tuning_writes_a_model_with_the_tokens(base: Path, rows: Path, tmp_path: Path):
    begin({**values_of(base, rows), "method": {"kind": "full"}}, tmp_path / "run")
    tuned = load_run(tmp_path / "run", nothing)
    assert tuned.tokenizer.convert_tokens_to_ids(list(TOKENS)) == list(loaded(base).new_tokens)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    assert theirs.get_input_embeddings().weight.shape[0] == tuned.vocab_size
    answer = api.load_text(tmp_path / "run").generate("Where is order 3?", max_new_tokens=3)
    assert isinstance(answer, str)


def test_a_quantized_base_gets_rows_too(untied: Path, rows: Path, tmp_path: Path):
    values = {**values_of(untied, rows), "quantization": {"kind": "nf4"}}
    begin(values, tmp_path / "run")
    tuned = load_run(tmp_path / "run", nothing)
    assert torch.isfinite(logits_of(tuned, ADAPTER)).all()
    in_head = QuantizationSettings(kind="nf4", targets=("lm_head", "q_proj"))
    with pytest.raises(RecipeError, match="lm_head is the head"):
        loaded(untied, quantization=in_head)


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_an_encoder_decoder_learns_new_tokens_and_merges_them(kind: str, rows: Path, tmp_path: Path):
    folder = write_tiny_encoder_decoder(tmp_path / "base", kind)
    begin(values_of(folder, rows), tmp_path / "run")
    export_run(tmp_path / "run", recipe_of_run(tmp_path / "run"), tmp_path / "out", nothing)
    run, out = api.load_text(tmp_path / "run"), api.load_plain(str(tmp_path / "out"))
    assert run.generate(PROMPT, max_new_tokens=8) == out.generate(PROMPT, max_new_tokens=8)


def test_a_classifier_reads_new_tokens(tmp_path: Path):
    folder = write_tiny_encoder(tmp_path / "base")
    labelled = tmp_path / "labelled.csv"
    labelled.write_text("text,label\n" + "".join(f"order {n} {TOKENS[n % 2]},{'ab'[n % 2]}\n" for n in range(30)))
    values = values_of(folder, labelled) | {"objective": {"kind": "classification"}}
    begin(values, tmp_path / "run")
    model = api.load(tmp_path / "run")
    assert isinstance(model, api.Classifier)
    assert len(model.classify(["order 3 <scratch>"])) == 1
    plain, marked = (model.classify([f"order 3 {text}"])[0].probabilities for text in ("", "<scratch>"))
    assert plain != marked


def test_an_adapter_goes_on_only_over_the_same_new_tokens(tiny_model: Path, rows: Path, tmp_path: Path):
    begin(values_of(tiny_model, rows), tmp_path / "run")
    onward = LoRA(begin_from=str(tmp_path / "run"))
    attached = onward.attach(loaded(tiny_model), ADAPTER, 0)
    assert attached.new_rows.tokens == loaded(tiny_model).new_tokens
    for tokens in ((), TOKENS[:2], (*TOKENS, "<more>")):
        with pytest.raises(RecipeError, match="trained rows of the tokens") as raised:
            onward.attach(loaded(tiny_model, tokens), ADAPTER, 0)
        assert raised.value.field == "trainable_token_indices"
    grown = {**values_of(tiny_model, rows), "method": {"from": str(tmp_path / "run")}}
    begin(grown, tmp_path / "second")


def test_methods_without_a_place_for_rows_and_settings_that_would_freeze_them_are_refused(tiny_model: Path, rows: Path):
    with pytest.raises(RecipeError) as raised:
        make_recipe({**values_of(tiny_model, rows), "method": {"kind": "ladder"}})
    assert "lora or full" in raised.value.mend
    with pytest.raises(RecipeError, match="would not train"):
        Full(layers=(0,)).attach(loaded(tiny_model), ADAPTER, 0)
    with pytest.raises(RecipeError, match="rows of the new tokens"):
        LoRA(targets=("embed_tokens",)).attach(loaded(tiny_model), ADAPTER, 0)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"add_tokens": ["<|im_start|>"]}, "is a token of the model already"),
        ({"add_tokens": ["<a>", "<a>"]}, "named twice"),
        ({"add_tokens": [" "]}, "blank"),
        ({"add_tokens": ["<a>"], "config": "llama-2m", "tokenizer": "."}, "tokenizer --special"),
    ],
)
def test_tokens_that_cannot_be_added_are_refused(changes: dict[str, Any], found: str, tiny_model: Path, rows: Path):
    values = {
        **recipe_values(tiny_model, rows),
        "model": {"name": str(tiny_model), **changes},
        "method": {"kind": "full"},
    }
    with pytest.raises(RecipeError) as raised:
        load_model(make_recipe(values).model, nothing)
    assert found in str(raised.value)
    assert raised.value.field == "model.add_tokens"


def test_a_plan_counts_the_rows(untied: Path, rows: Path):
    recipe, config, found = read_request(make_recipe(values_of(untied, rows)), nothing)
    work = work_of(recipe, config, found, torch.device("cpu"))
    plain, grown = trace_all([replace(work, num_new_tokens=0), work])
    assert not isinstance(plain, Exception)
    assert not isinstance(grown, Exception)
    assert grown.num_trainable - plain.num_trainable == 2 * 3 * int(config.hidden_size)
