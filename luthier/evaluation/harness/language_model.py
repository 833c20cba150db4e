"""The harness's own view of a model. This file alone is imported only where `lm_eval` is installed."""

from __future__ import annotations

from typing import Any

from lm_eval.api.model import LM

from luthier.evaluation.harness.scoring import Scored


class HarnessModel(LM):  # type: ignore[misc]
    """Answers the harness's requests, each of which has its arguments in `args`."""

    def __init__(self, scored: Scored) -> None:
        super().__init__()
        self._scored = scored

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """log p of each text behind its context, and whether it is the greedy one."""
        found = self._scored.likelihoods([(context, text) for context, text in (each.args for each in requests)])
        return [(each.logprob, each.is_greedy) for each in found]

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        """log p of each whole text."""
        return self._scored.rolling([each.args[0] for each in requests])

    def generate_until(self, requests: list[Any]) -> list[str]:
        """How each text goes on."""
        return self._scored.continued([(text, values) for text, values in (each.args for each in requests)])
