"""A model behind an endpoint as graders ask it, and the replies of any judge in the order in which they were asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from luthier.evaluation.grading import Ask, JudgeSampling
from luthier.evaluation.judged.endpoint import Endpoint, EndpointModel
from luthier.evaluation.judged.verdicts import AskJudge
from luthier.types import Message


def ask_endpoint(endpoint: Endpoint) -> Ask:
    """A model behind an endpoint as graders ask it: the endpoint's own, or where it has no name the one that each grader names."""
    there: dict[Endpoint, EndpointModel] = {}  # each learns once what its server does not take

    def ask(chats: Sequence[tuple[Message, ...]], model: str | None, sampling: JudgeSampling) -> list[str | None]:
        given = sampling.model_dump(exclude={"max_new_tokens"})
        max_tokens = sampling.max_new_tokens or endpoint.max_tokens
        asked = replace(endpoint, model=endpoint.model or model or "", max_tokens=max_tokens, **given)
        return said_in_order(there.setdefault(asked, EndpointModel(asked)), chats)

    return ask


def said_in_order(judge: AskJudge, chats: Sequence[tuple[Message, ...]]) -> list[str | None]:
    """What the judge says to each chat, in their order; None where it refuses."""
    replies = dict(judge(chats))
    return [None if replies[place].refused else replies[place].text for place in range(len(chats))]
