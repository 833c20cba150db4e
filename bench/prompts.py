"""The work of `bench.grpo` and `bench.ppo_memory`: prompts as token ids, a reward, and the initial adapter, fixed in files.

Only the standard library is imported here, for the reason given in `work`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FILE = "prompts.json"
GROUP = 8
REWARD = '''"""What an answer is worth: the share of its characters that are vowels."""


def reward(prompts, answers, rows):
    """The same for every contestant; answers hardly ever agree in it, so that all of them are learned from."""
    return [sum(letter in "aeiou" for letter in answer) / (1 + len(answer)) for answer in answers]
'''


@dataclass(frozen=True)
class PromptWork:
    """A whole run: `texts` in the order of training, `rows_per_step` of them to a step, each answered `GROUP` times.

    prompt_ids: each text's tokens, up to where the answer begins. reward: the file of the function `reward`.
    """

    name: str
    model: str
    adapter: str
    recipe: str
    reward: str
    rows_per_step: int
    peak_lr: float
    clip_norm: float
    pad_id: int
    kl: float
    max_new_tokens: int
    texts: tuple[str, ...]
    prompt_ids: tuple[list[int], ...]

    @property
    def num_steps(self) -> int:
        """Optimizer steps, each of one rollout."""
        return len(self.texts) // self.rows_per_step

    @property
    def samples_per_step(self) -> int:
        """Answers drawn and learned from in each."""
        return GROUP * self.rows_per_step


def write_prompts(folder: Path, work: PromptWork) -> None:
    """Write the work as JSON into the folder."""
    (folder / FILE).write_text(json.dumps(asdict(work)), "utf-8")


def read_prompts(folder: Path) -> PromptWork:
    """The work that lies in a folder."""
    values: dict[str, Any] = json.loads((folder / FILE).read_text("utf-8"))
    return PromptWork(**{**values, "texts": tuple(values["texts"]), "prompt_ids": tuple(values["prompt_ids"])})


def read_questions(path: Path) -> list[str]:
    """The questions of a JSONL file. Raises: OSError; ValueError or KeyError for another form."""
    return [json.loads(line)["question"] for line in path.read_bytes().splitlines() if line.strip()]
