from dataclasses import replace

import pytest
import torch

from luthier.data.batches import evaluation_batches
from luthier.data.rendering import build_renderer
from luthier.data.settings import DataSettings
from luthier.errors import DataError
from luthier.evaluation.candidates import Candidate
from luthier.evaluation.compare import evaluate_records, questions_of
from luthier.evaluation.loss_by_row import loss_measures, losses_by_row, row_losses
from luthier.generation.settings import Sampling
from luthier.methods.lora import LoRA
from luthier.models.loading import load_model
from luthier.models.settings import ModelSettings
from luthier.objectives.sft import SFT
from luthier.ops.workers import Workers
from luthier.types import Completion, Conversation, Message, Origin, PlainText

SAMPLING = Sampling(max_new_tokens=12)
COLOURS = ["red", "green", "blue", "black"]


def chat(*said):
    return Conversation(tuple(Message(role, content) for role, content in said))


def rows(records):
    return [(record, Origin("rows.jsonl", line)) for line, record in enumerate(records, start=1)]


CHATS = rows(
    [chat(("user", f"Colour {i}?"), ("assistant", f"It is {COLOURS[i % 4]}.")) for i in range(10)]
    + [
        chat(
            ("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello."), ("user", "Bye"), ("assistant", "So long.")
        )
    ]
    + [Completion("One and", "two.")]
)


@pytest.fixture(scope="module")
def model(tiny_model):
    return load_model(ModelSettings(name=str(tiny_model), device="cpu"), lambda sentence: None)


@pytest.fixture(scope="module")
def renderer(model):
    return build_renderer(DataSettings(train="rows.jsonl"), model.tokenizer)


def examples_of(records, renderer):
    return [SFT().example(renderer.render(record, origin), i, origin) for i, (record, origin) in enumerate(records)]


def evaluated(candidates, records, renderer, **more):
    with Workers(2) as workers:
        return evaluate_records(
            candidates, records, examples_of(records, renderer), renderer, SAMPLING, workers, **more
        )


@pytest.fixture(scope="module")
def tuned(model, renderer):
    """The name of an adapter that has learned the chats by heart."""
    attachment = LoRA(rank=16, alpha=32).attach(model, "default", seed=0)
    tensors = list(attachment.trainables.values())
    optimizer = torch.optim.Adam(tensors, lr=1e-2)
    (batch,) = evaluation_batches(examples_of(CHATS, renderer), 2000, 1, model.layout, model.pad_id)
    for _ in range(120):
        loss = SFT().loss_sum(model.forward(batch, "default")) / batch.learned_weight
        gradients = torch.autograd.grad(loss, tensors)
        for tensor, gradient in zip(tensors, gradients, strict=True):
            tensor.grad = gradient
        optimizer.step()
    return "default"


def test_a_candidate_that_has_learned_the_answers_is_found_better(model, renderer, tuned):
    result = evaluated([Candidate("base", model), Candidate("tuned", model, tuned)], CHATS, renderer)
    measures = {measure.name: measure for measure in result.measures}
    assert list(measures) == ["loss", "perplexity", "exact match", "token F1", "ROUGE-L"]
    assert measures["exact match"].estimates[1].value == 1.0
    assert [measures[name].verdict(1) for name in ("loss", "exact match", "token F1", "ROUGE-L")] == ["better"] * 4
    assert result.sentences[0].startswith("tuned is better than base on 12 rows: loss ")
    assert [row.reference for row in result.answers] == [row.answers[1] for row in result.answers]
    assert [row.asked for row in result.answers][-2:] == ["Bye", "One and"]


def test_an_answer_is_measured_against_the_nearest_of_its_references(model, renderer, tuned):
    records = rows([Completion(f"Colour {i}?", "Not so.", ("Perhaps.", f"It is {COLOURS[i % 4]}.")) for i in range(10)])
    result = evaluated([Candidate("base", model), Candidate("tuned", model, tuned)], records, renderer)
    measures = {measure.name: measure for measure in result.measures}
    for name in ("exact match", "token F1", "ROUGE-L"):
        assert measures[name].estimates[1].value == 1.0
    assert "10 of 10 rows have several references: the nearest counts." in result.notes
    assert result.answers[0].references == ("Not so.", "Perhaps.", "It is red.")
    assert result.as_json()["answers"][0]["references"] == ["Not so.", "Perhaps.", "It is red."]
    alone = evaluated([Candidate("tuned", model, tuned)], rows([Completion("Colour 0?", "Not so.")]), renderer)
    assert alone.measures[2].estimates[0].value == 0.0
    assert "references" not in alone.as_json()["answers"][0]


def test_rows_with_a_rationale_are_measured_by_where_their_answers_end(model, renderer, tuned):
    records = rows([Completion(f"Colour {i}?", f"Look at it.\n#### it is {COLOURS[i % 4]}") for i in range(10)])
    result = evaluated([Candidate("base", model), Candidate("tuned", model, tuned)], records, renderer)
    measures = {measure.name: measure for measure in result.measures}
    assert (measures["final-answer"].estimates[1].value, measures["exact match"].estimates[1].value) == (1.0, 0.0)
    assert measures["final-answer"].verdict(1) == "better"


def test_a_candidate_against_itself_differs_in_nothing(model, renderer):
    result = evaluated([Candidate("one", model), Candidate("other", model)], CHATS, renderer)
    for measure in result.measures:
        assert measure.estimates[0] == measure.estimates[1]
        difference = measure.comparisons[0].difference
        assert difference is None or (difference.value, difference.low, difference.high) == (0, 0, 0)
    assert result.sentences[0].startswith("other is the same as one on 12 rows: loss")
    assert result.outcomes["other"].kind == "same"


def test_row_losses_are_the_cross_entropy_of_each_row_alone(model, renderer):
    examples = examples_of(CHATS, renderer)
    for layout in ("packed", "bucketed"):
        batches = evaluation_batches(examples, 300, 1, layout, model.pad_id)
        assert 1 < len(batches) < len(examples)
        total = sum((row_losses(model, None, batch, len(CHATS)).nats_R for batch in batches), start=torch.zeros(1))
        for row, example in enumerate(examples):
            tokens_T = torch.from_numpy(example.parts[0].tokens_T)
            logits_TV = model.hf(input_ids=tokens_T[None]).logits[0]
            chosen_NV = logits_TV[torch.from_numpy(example.source_N)]
            expected = torch.nn.functional.cross_entropy(chosen_NV, torch.from_numpy(example.token_N), reduction="sum")
            assert float(total[row]) == pytest.approx(float(expected), rel=1e-4)


def test_the_loss_counts_every_learned_token_alike(model, renderer):
    result = evaluated([Candidate("base", model)], CHATS, renderer)
    (batch,) = evaluation_batches(examples_of(CHATS, renderer), 2000, 1, "packed", model.pad_id)
    whole = -float(model.forward(batch).logprob_N.mean())
    loss, perplexity = result.measures[:2]
    assert loss.estimates[0].value == pytest.approx(whole, rel=1e-5)
    assert loss.estimates[0].low < whole < loss.estimates[0].high
    assert perplexity.estimates[0].value == pytest.approx(float(torch.tensor(whole).exp()), rel=1e-4)


def test_the_question_of_a_chat_is_all_before_its_last_answer(renderer):
    (question,) = questions_of(rows([CHATS[10][0]]), renderer)
    assert renderer.tokenizer.decode(question.prompt).endswith(
        "<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"
    )
    assert (question.asked, question.reference) == ("Bye", "So long.")


def test_a_completion_without_template_is_asked_as_it_was_trained(renderer):
    plain = replace(renderer, completions_as="plain")
    (question,) = questions_of(rows([Completion("One and", "two.")]), plain)
    assert list(question.prompt) == plain.plain_prompt_tokens("One and")


def test_plain_text_counts_for_the_loss_only_and_that_is_said(model, renderer):
    records = rows([PlainText("Where is my parcel?"), *(record for record, _ in CHATS[:2])])
    result = evaluated([Candidate("base", model)], records, renderer)
    assert [measure.num_rows for measure in result.measures] == [3, 3, 2, 2, 2]
    assert any("1 of 3 rows are plain text" in note for note in result.notes)
    assert [row.origin.line for row in result.answers] == [2, 3]
    only_text = evaluated([Candidate("base", model)], records[:1], renderer)
    assert [measure.name for measure in only_text.measures] == ["loss", "perplexity"]


def test_the_limit_is_kept_and_said(model, renderer):
    result = evaluated([Candidate("base", model)], CHATS, renderer, limit=3)
    assert result.num_rows == 3
    assert {measure.num_rows for measure in result.measures} == {3}
    assert result.notes == ("The first 3 of 12 rows were used.",)


def test_progress_reaches_the_end_of_each_task(model, renderer):
    seen = []
    evaluated([Candidate("base", model)], CHATS, renderer, progress=lambda *report: seen.append(report))
    assert ("base: loss", 12, 12) in seen
    assert seen[-1] == ("base: answers", 12, 12)


def test_a_stop_ends_the_losses_after_the_batch_it_comes_in(model, renderer):
    done = []
    with Workers(1) as workers:

        def stop(task, number, total):
            done.append((number, total))
            workers.are_stopping.set()

        losses_by_row(Candidate("base", model), examples_of(CHATS, renderer), len(CHATS), 40, workers, stop)
    ((number, total),) = done
    assert number < total


def test_no_rows_are_refused(model, renderer):
    with pytest.raises(DataError, match="no rows"):
        evaluated([Candidate("base", model)], [], renderer)


def test_rows_without_any_answer_are_refused(model, renderer):
    records = rows([chat(("user", "Hello?"))])
    with Workers(1) as workers, pytest.raises(DataError, match="nothing to measure"):
        evaluate_records([Candidate("base", model)], records, [], renderer, SAMPLING, workers)


@pytest.mark.parametrize("answer", ["yes", "yes " * 300])
def test_a_row_beyond_the_context_is_refused_with_its_place(model, renderer, answer):
    question = "why " * 300 if answer == "yes" else "why"
    records = rows([CHATS[0][0], chat(("user", question), ("assistant", answer))])
    with pytest.raises(DataError, match=r"rows\.jsonl, line 2.*the model holds 1024"):
        evaluated([Candidate("base", model)], records, renderer)


def test_the_loss_of_one_row_alone_has_no_width(model, renderer):
    (batch,) = evaluation_batches(examples_of(CHATS[:1], renderer), 200, 1, "packed", model.pad_id)
    loss = loss_measures([row_losses(model, None, batch, 1)])[0].estimates[0]
    assert loss.low == loss.value == loss.high


def test_two_models_are_compared_as_well_as_two_adapters(model, renderer, tiny_model):
    other = load_model(ModelSettings(name=str(tiny_model), device="cpu"), lambda sentence: None)
    with torch.no_grad():
        for parameter in other.hf.parameters():
            parameter.mul_(1.5)
    result = evaluated([Candidate("base", model), Candidate("tuned", other)], CHATS[:3], renderer)
    assert result.measures[0].estimates[0] != result.measures[0].estimates[1]
