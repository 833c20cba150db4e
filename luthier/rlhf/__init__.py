"""Reinforcement learning from rewards: algorithms, one file each, and their list."""

from luthier.rlhf.contract import RolloutObjective
from luthier.rlhf.grpo import GRPO
from luthier.rlhf.online_dpo import OnlineDPO
from luthier.rlhf.ppo import PPO
from luthier.rlhf.raft import RAFT
from luthier.rlhf.reinforce_plus_plus import ReinforcePlusPlus
from luthier.rlhf.rloo import RLOO

ALGORITHMS: tuple[type[RolloutObjective], ...] = (PPO, RLOO, ReinforcePlusPlus, GRPO, RAFT, OnlineDPO)

__all__ = ["ALGORITHMS", "GRPO", "PPO", "RAFT", "RLOO", "OnlineDPO", "ReinforcePlusPlus", "RolloutObjective"]
