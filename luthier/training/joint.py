"""The losses of a step's micro-batches where each row's loss depends on the whole step.

The loss is a function of one vector for each text (`Whole`). So the vectors of all micro-batches are computed first,
without keeping anything; then the loss and its gradient with respect to each vector; and the loss of a micro-batch becomes
the product of that gradient with the vectors, computed again: its gradient with respect to the weights is that of the loss
itself, by the chain rule (GradCache, Gao et al. 2021, https://arxiv.org/abs/2101.06983).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from luthier.models.outputs import Outputs
from luthier.objectives.contract import JointObjective, Whole, joined


def gradients_of(objective: JointObjective, parts: Sequence[Whole]) -> tuple[float, list[Tensor]]:
    """The summed loss of a step whose micro-batches gave these vectors, and its gradient with respect to each one's."""
    whole = joined(parts)
    vector_MD = whole.vector_MD.detach().requires_grad_()
    with torch.enable_grad():
        loss = objective.joint_loss(replace(whole, vector_MD=vector_MD))
    (gradient_MD,) = torch.autograd.grad(loss, vector_MD)
    return float(loss.detach()), list(gradient_MD.split([len(part.vector_MD) for part in parts]))


def surrogate(objective: JointObjective, outputs: Outputs, gradient_MD: Tensor) -> Tensor:
    """What stands for a micro-batch's loss; its value means nothing, its gradient does; shape ()."""
    return (objective.whole(outputs).vector_MD * gradient_MD).sum()
