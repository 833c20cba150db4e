"""A step that is only pretended holds what one that is carried out does."""

from __future__ import annotations

from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models.rows import class_rows
from models.tiny import CLASSES, CONFIGS
from objectives.examples import TASKS, Task
from tiny_runs import recipe_values
from transformers import AutoConfig

from luthier.errors import LuthierError, RecipeError, Unplannable
from luthier.methods import METHODS, LoRA, Method, kind_of
from luthier.models.language_model import FastModel
from luthier.models.settings import ModelSettings
from luthier.objectives import Distillation
from luthier.objectives.contract import Kept
from luthier.planner.alone import trace_all
from luthier.planner.beside import OTHERS, Other
from luthier.planner.memory import demand
from luthier.planner.request import Rows, imagined_rows, work_of
from luthier.planner.trace import (
    ATTACHING,
    BACKWARD,
    GRADIENTS,
    KEPT,
    PACKED,
    PREPARED,
    PREPARING,
    STATE,
    TRAINED,
    WEIGHTS,
    Trace,
    take_steps,
    trace,
)
from luthier.planner.work import Work
from luthier.recipe import make_recipe

WIDE = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 500, "tie_word_embeddings": False,
}  # fmt: skip


NEEDED: dict[str, dict[str, Any]] = {
    "bitfit": {"missing": "add-zero"},
    "rows": {"linear_rows": 0.1},
    "stack": {"parts": [{"kind": "lora"}, {"kind": "prompt-tuning", "num_virtual_tokens": 4}]},
}
UNPLANNED = ("lets",)
NEED_RUNS = ("adapter-fusion", "warp")
"""One begins from runs, the other needs the words of a tokenizer."""

ROWS = Path(__file__)  # a file that is there: rows are imagined


def work(config: dict[str, Any] | None = None, dtype: str = "auto", **parts: Any) -> Work:
    """The work of a recipe over rows as long as it allows."""
    values = recipe_values(Path("model"), ROWS, **parts)
    recipe = make_recipe({**values, "model": {"name": "model", "dtype": dtype}})
    made = AutoConfig.for_model(**(config or WIDE))
    return work_of(recipe, made, imagined_rows(recipe, made), torch.device("cpu"))


COMBINATIONS: dict[str, Work] = {
    "lora": work(),
    "lora, recomputed": work(training={"gradient_checkpointing": True}),
    "full": work(method={"kind": "full", "rank": None}),
    "full, recomputed": work(method={"kind": "full", "rank": None}, training={"gradient_checkpointing": True}),
    "full, of ranks": replace(work(method={"kind": "full", "rank": None}), is_divided=True),
    "full, 8-bit states": work(method={"kind": "full", "rank": None}, training={"optimizer": "adamw-8bit"}),
    "dora": work(method={"kind": "dora"}),
    "houlsby": work(method={"kind": "houlsby", "rank": None}),
    "ladder": work(method={"kind": "ladder", "rank": None}),
    "top": work(method={"kind": "top-layers", "rank": None, "num_layers": 1}),
    "top over bf16": work(dtype="bf16", method={"kind": "top-layers", "rank": None, "num_layers": 1}),
    "full, bf16": work(dtype="bf16", method={"kind": "full", "rank": None}),
    "nf4 over bf16": work(dtype="bf16", quantization={"kind": "nf4"}),
    "prefixes": work(method={"kind": "prefix-tuning", "rank": None, "num_virtual_tokens": 4}, data={"max_length": 96}),
    "a prompt": work(method={"kind": "p-tuning", "rank": None, "num_virtual_tokens": 4}, data={"max_length": 96}),
    "loftq": work(method={"kind": "loftq"}, quantization={"kind": "nf4"}),
    "pissa, nf4": work(method={"kind": "pissa"}, quantization={"kind": "nf4"}),
    "adafactor": work(training={"optimizer": "adafactor"}),
    "nf4": work(quantization={"kind": "nf4"}),
    "int8, recomputed": work(quantization={"kind": "int8"}, training={"gradient_checkpointing": True}),
}


@pytest.fixture(scope="module")
def pretended() -> dict[str, Trace]:
    """All combinations, in one process of their own."""
    found = trace_all(list(COMBINATIONS.values()))
    assert all(isinstance(each, Trace) for each in found), found
    return dict(zip(COMBINATIONS, found, strict=True))  # type: ignore[arg-type]


def test_ranks_that_share_gradients_hold_none_whole() -> None:
    """Short rows, so that gradients weigh more than what layers keep."""
    short = work(method={"kind": "full", "rank": None}, data={"max_length": 8}, training={"tokens_per_micro_batch": 8})
    alone, divided = (each for each in trace_all([short, replace(short, is_divided=True)]) if isinstance(each, Trace))
    assert divided.standing == alone.standing
    assert alone.peaks[BACKWARD].parts[BACKWARD] > alone.standing[TRAINED]
    assert divided.peaks[BACKWARD].parts[BACKWARD] < 2 * divided.unit_gradient


def test_ranks_gather_weights_in_the_format_of_products_and_keep_none_of_them() -> None:
    mixed = work(method={"kind": "full", "rank": None}, training={"autocast": "bf16"})
    plain = work(method={"kind": "full", "rank": None})
    alone, divided, in_fp32 = (
        each
        for each in trace_all([mixed, replace(mixed, is_divided=True), replace(plain, is_divided=True)])
        if isinstance(each, Trace)
    )
    in_linears = 3 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 160) + 64 * 500
    spared = alone.peaks["forward pass"].parts[KEPT] - divided.peaks["forward pass"].parts[KEPT]
    assert spared == pytest.approx(2 * in_linears, rel=0.2)  # at the peak the head's weight may be counted elsewhere
    assert 2 * divided.gathered == in_fp32.gathered


def test_a_trace_that_is_to_stop_ends_with_its_next_operation() -> None:
    asked: list[int] = []

    def is_stopping() -> bool:
        asked.append(1)
        return len(asked) > 50

    with ThreadPoolExecutor(1) as pool, pytest.raises(CancelledError):  # in a thread of its own, as plans are made
        pool.submit(trace, work(), is_stopping=is_stopping).result()
    assert len(asked) == 51


@pytest.mark.parametrize("name", COMBINATIONS)
def test_what_is_pretended_holds_what_is_carried_out(name: str, pretended: dict[str, Trace]) -> None:
    (real,) = trace_all([COMBINATIONS[name]], for_real=True)
    assert isinstance(real, Trace)
    wanted, found = (max(peak.num_bytes for peak in each.peaks.values()) for each in (real, pretended[name]))
    assert found == pytest.approx(wanted, rel=0.02)
    for part in (WEIGHTS, TRAINED, GRADIENTS, STATE):
        assert pretended[name].standing.get(part, 0) == pytest.approx(real.standing.get(part, 0), rel=0.01)


@pytest.mark.parametrize("kind", sorted({*map(kind_of, METHODS)} - {*COMBINATIONS, *NEED_RUNS}))
def test_every_method_is_planned_or_told_not_to_be(kind: str) -> None:
    settings = {"rank": None, **NEEDED.get(kind, {})}
    quantization = {"quantization": {"kind": "nf4"}} if kind == "loftq" else {}
    (found,) = trace_all([work(method={"kind": kind, **settings}, data={"max_length": 96}, **quantization)])
    assert isinstance(found, Unplannable if kind in UNPLANNED else Trace), found


def test_the_parts_of_a_full_tuning_are_the_arithmetic(pretended: dict[str, Trace]) -> None:
    full = pretended["full"]
    count = full.num_parameters
    assert full.num_trainable == count
    assert full.standing[TRAINED] == pytest.approx(4 * count, rel=0.01)
    assert full.standing[GRADIENTS] == pytest.approx(4 * count, rel=0.01)
    assert full.standing[STATE] == pytest.approx(8 * count, rel=0.01)


def test_four_bits_take_what_the_formula_says(pretended: dict[str, Trace]) -> None:
    layers = WIDE["num_hidden_layers"] * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 160)
    assert pretended["nf4"].standing[PACKED] == pytest.approx(layers * 4.127 / 8, rel=0.01)
    assert pretended["nf4"].num_parameters == pretended["lora"].num_parameters


def test_of_a_mixture_every_expert_is_held_and_adapted_and_no_router_is_packed() -> None:
    kind, values = CONFIGS["mixtral"]
    values = {**values, "hidden_size": 64, "intermediate_size": 128}
    one = work({"model_type": kind, **values}, data={"max_length": 48}, quantization={"kind": "nf4"})
    (found,) = trace_all([one])
    assert isinstance(found, Trace)
    attention, experts = 64 * (64 * 2 + 32 * 2), values["num_local_experts"] * (64 * 256 + 128 * 64)
    assert found.standing[PACKED] == pytest.approx(2 * (attention + experts) * 4.127 / 8, rel=0.01)
    rank = 2
    adapted = 2 * (64 + 64) + 2 * (64 + 32) + values["num_local_experts"] * (64 + 256 + 128 + 64)
    assert found.num_trainable == 2 * rank * adapted


def test_what_a_method_decomposes_at_the_beginning_is_counted_beside_the_base(pretended: dict[str, Trace]) -> None:
    wide, narrow = 160, 64
    factors = 4 * (wide * narrow + narrow + narrow * narrow)  # U, σ and Vᵀ of the feed-forward's weights, in fp32
    for name in ("loftq", "pissa, nf4"):
        peak = pretended[name].peaks[PREPARING]
        assert peak.parts[PREPARED] >= factors + 4 * wide * narrow
        assert peak.parts[PACKED] == pretended[name].standing[PACKED]
    (plain,) = trace_all([work(method={"kind": "pissa"})])
    assert isinstance(plain, Trace)
    assert plain.peaks[ATTACHING].parts[PREPARED] >= factors
    assert plain.peaks[ATTACHING].parts[WEIGHTS] == pytest.approx(4 * pretended["full"].num_parameters, rel=0.01)
    assert PREPARING not in plain.peaks


def test_ranks_gather_embedding_and_head_too_and_share_gradients_unit_by_unit(pretended: dict[str, Trace]) -> None:
    layer = 2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 160 + 2 * 64
    assert pretended["full"].gathered == 4 * 2 * layer
    assert pretended["full"].unit_gradient == 4 * layer
    lora = pretended["lora"]
    assert lora.unit_gradient == 4 * lora.num_trainable // WIDE["num_hidden_layers"]
    assert lora.gathered == 2 * (4 * layer + lora.unit_gradient)
    (wordy,) = trace_all([work({**WIDE, "vocab_size": 2000}, method={"kind": "full", "rank": None})])
    assert isinstance(wordy, Trace)
    assert wordy.gathered == 4 * (2000 * 64 + layer)
    assert wordy.unit_gradient == 4 * 2000 * 64


def test_recomputed_layers_keep_less(pretended: dict[str, Trace]) -> None:
    kept, recomputed = (pretended[name].peaks["forward pass"].parts[KEPT] for name in ("lora", "lora, recomputed"))
    assert recomputed < kept / 2
    assert BACKWARD in pretended["lora, recomputed"].peaks["backward pass"].parts


def test_more_tokens_need_more_and_weights_do_not_change() -> None:
    small, large = trace_all([work(), work(training={"tokens_per_micro_batch": 384})])
    assert isinstance(small, Trace)
    assert isinstance(large, Trace)
    assert large.batch_tokens == 2 * small.batch_tokens
    assert demand(large, 1).num_bytes > demand(small, 1).num_bytes
    assert large.standing[WEIGHTS] == small.standing[WEIGHTS]


def test_what_cannot_be_attached_is_refused_as_in_a_run() -> None:
    good, bad = trace_all([work(), work(method={"targets": ["nowhere"]})])
    assert isinstance(good, Trace)
    assert isinstance(bad, LuthierError)
    assert "nowhere" in str(bad)


def test_a_step_that_depends_on_the_numbers_is_told_as_such() -> None:
    method = {"kind": "lets", "rank": None}
    (found,) = trace_all([work(method=method, data={"max_length": 96})])
    assert isinstance(found, Unplannable)
    assert "--no-plan" in found.mend


def test_rows_of_classes_cannot_be_imagined() -> None:
    recipe = make_recipe(recipe_values(Path("m"), ROWS, objective={"kind": "classification"}))
    with pytest.raises(RecipeError) as refused:
        imagined_rows(recipe, AutoConfig.for_model(**WIDE))
    assert refused.value.field == "data.train"


@pytest.mark.parametrize(
    "name", ["gpt2", "gemma2", "falcon-new", "bloom", "gpt_oss", "mixtral", "qwen2_moe", "qwen3_moe"]
)
def test_other_families_too(name: str) -> None:
    kind, values = CONFIGS[name]
    check_planned(work({"model_type": kind, **values}, data={"max_length": 48}))


def check_planned(one: Work) -> None:
    """What is pretended of a work holds what is carried out."""
    (pretended,) = trace_all([one])
    assert isinstance(pretended, Trace), pretended
    (real,) = trace_all([one], for_real=True)
    assert isinstance(real, Trace)
    wanted, found = (max(peak.num_bytes for peak in each.peaks.values()) for each in (real, pretended))
    assert found == pytest.approx(wanted, rel=0.02)


@pytest.mark.parametrize("name", ["bert", "distilbert", "deberta", "modernbert-mean"])
def test_encoders_too(name: str) -> None:
    kind, values = CONFIGS[name]
    objective = {"kind": "classification", "classes": CLASSES}
    recipe = make_recipe(recipe_values(Path("model"), ROWS, objective=objective, method={"targets": "all-linear"}))
    config = AutoConfig.for_model(kind, **values)
    check_planned(work_of(recipe, config, Rows(tuple(class_rows((40, 17, 33, 48), "first"))), torch.device("cpu")))


def test_a_run_after_a_plan_finds_nothing_that_pretends() -> None:
    one = work(
        quantization={"kind": "nf4"},
        training={"rows_per_step": 4, "tokens_per_micro_batch": 192},
        data={"max_length": 24},
    )
    (pretended,) = trace_all([one])
    assert isinstance(pretended, Trace)
    take_steps(one)


OBJECTIVES = ("mlm-bert", "span-corruption-t5", "prefix-lm-llama", "multiple-choice-llama", "embedding-bert")


@pytest.mark.parametrize("task", [task for task in TASKS if str(task) in OBJECTIVES], ids=str)
def test_objectives_are_planned_from_their_rows(task: Task) -> None:
    recipe = make_recipe(recipe_values(Path("model"), ROWS)).model_copy(update={"objective": task.objective})
    kind, values = CONFIGS[task.family]
    one = work_of(recipe, AutoConfig.for_model(kind, **values), Rows(task.rows()), torch.device("cpu"))
    (pretended,), (real,) = trace_all([one]), trace_all([one], for_real=True)
    assert isinstance(pretended, Trace), pretended
    assert isinstance(real, Trace)
    wanted, found = (max(peak.num_bytes for peak in each.peaks.values()) for each in (real, pretended))
    assert found == pytest.approx(wanted, rel=0.02)


@pytest.mark.parametrize("kept", [None, Kept(8, 2.0)], ids=["at hand", "kept"])
@pytest.mark.parametrize("method", [None, LoRA(rank=4)], ids=["plain", "adapted"])
def test_models_beside_the_recipes_own_are_planned(kept: Kept | None, method: Method | None) -> None:
    teacher = AutoConfig.for_model(**{**WIDE, "hidden_size": 128, "num_attention_heads": 8})
    other = Other("teacher", teacher, torch.float32, FastModel(), None, method, kept)
    objective = Distillation(teacher=ModelSettings(name="teacher"), top_k=None if kept is None else kept.count)
    plain = work()
    one = replace(plain, objective=objective, others=(other,))
    check_planned(one)
    (found,), (alone,) = trace_all([one]), trace_all([plain])
    assert isinstance(found, Trace)
    assert isinstance(alone, Trace)
    assert found.standing[WEIGHTS] == alone.standing[WEIGHTS]
    heads = 2 * 500 * 128
    layer = 128 * (128 * 2 + 32 * 2 + 3 * 160) + 2 * 128
    weights = 4 * (heads + 3 * layer + 128)
    if kept is None:
        assert found.standing[OTHERS] >= weights
        assert found.standing[OTHERS] <= 1.1 * weights
        assert not found.kept_bytes
        return
    assert OTHERS not in found.standing
    (asking,) = (peak for phase, peak in found.peaks.items() if "before step 1" in phase)
    assert asking.parts[OTHERS] >= weights
    assert WEIGHTS not in asking.parts
    assert found.kept_bytes == sum(row.num_learned for row in one.rows) * (8 * 4 + 9 * 4)
