"""DeBERTa's table of distances: projected and normed as each adapter does it, and as a merged model would."""

from __future__ import annotations

import pytest
import torch
from models.rows import class_rows, plain_class_logprobs
from models.tiny import plain_model, tiny_model
from models.tuned import LENGTHS, logprobs, randomize, usual_batch
from near import assert_apart, assert_near

from luthier.methods import IA3, LNTuning, LoRA, Method
from luthier.models.call import Draws

TABLE_NORM = "encoder.LayerNorm"


@pytest.mark.parametrize(
    "method",
    [
        LoRA(rank=3, targets=("query_proj", "key_proj")),
        IA3(targets=("key_proj",)),
        LNTuning(targets=(TABLE_NORM,)),
    ],
    ids=lambda method: method.kind,
)
def test_what_adapts_the_projections_or_the_norm_adapts_the_table_as_in_a_merged_model_of_transformers(
    method: Method,
) -> None:
    model, plain = tiny_model("deberta"), plain_model("deberta")
    attachment = method.attach(model, "default", seed=0)
    randomize(attachment, 0.3)
    adapted = logprobs(model)
    assert_apart(adapted, logprobs(model, None), 1e-3)
    attachment.merge()
    plain.load_state_dict(model.hf.state_dict())
    assert_near(adapted, plain_class_logprobs(plain, class_rows(LENGTHS, "first")), 1e-5)


def test_the_table_gets_the_gradient_of_every_rows_own_adapter() -> None:
    model = tiny_model("deberta")
    for index, name in enumerate(("one", "two")):
        randomize(LoRA(rank=2, targets=("query_proj", "key_proj")).attach(model, name, seed=index), 0.3)
    table = model.hf.get_parameter("deberta.encoder.rel_embeddings.weight").requires_grad_(True)
    whose = ("one", None, "one", "two")
    mixed = torch.autograd.grad(model.forward(usual_batch(model, whose), whose).logprob_N.sum(), table)[0]
    alone = torch.zeros_like(mixed)
    for row, name in enumerate(whose):
        logprob_N = model.forward(usual_batch(model, name), name).logprob_N
        alone += torch.autograd.grad(logprob_N[row], table)[0]
    assert_near(mixed, alone)


def test_dropout_within_an_adapter_leaves_the_table_alone() -> None:
    model = tiny_model("deberta")
    attachment = LoRA(rank=2, dropout=0.5, targets=("query_proj",)).attach(model, "default", seed=0)
    randomize(attachment, 0.3)
    lengths: list[int] = []
    branch = model.hf.get_submodule("deberta.encoder.layer.0.attention.self.query_proj")
    branch.register_forward_hook(lambda module, args, output: lengths.append(output.numel() // 32))
    batch = usual_batch(model, "default")
    dropped = [model.forward(batch, "default", Draws(0, step)).logprob_N for step in (1, 2)]
    assert_apart(dropped[0], dropped[1])
    assert set(lengths) == {batch.tokens_BT.numel(), 8}, "the tokens, and the table of 2 × 4 distances"


def test_outside_of_a_call_it_is_the_plain_model() -> None:
    model, plain = tiny_model("deberta"), plain_model("deberta")
    tokens_BT = usual_batch(model, None).tokens_BT
    states = [hf.get_submodule("deberta")(input_ids=tokens_BT).last_hidden_state for hf in (model.hf, plain)]
    assert_near(states[0], states[1], 1e-6)
