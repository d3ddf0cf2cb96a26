r"""Reflow (chapter 4): learn a velocity from pairs that a flow has made, so that its paths become straight.

.. math:: L(v) = \mathbb{E}_{t,\, (x_0, x_1)} \big\| v(x_t, t) - (x_1 - x_0) \big\|^2,
          \qquad x_t = t\, x_1 + (1 - t)\, x_0

is the loss of flow matching, but the data x1 of a pair is what the last flow makes of its noise x0 (Liu et al. 2023,
algorithm 1). The paths of such pairs cross less, so their average, the velocity, is straighter; at a single time it is
distillation, to as many steps as there are times.
"""

from flowbook.metrics import curvature, straightness, transport_cost
from flowbook.reflow.loss import Distance, Perceptual, Reflow, Times, reflow_loss, reflow_times
from flowbook.reflow.pairs import OnlinePairs, PairDataset, generate_pairs
from flowbook.reflow.perceptual import LPIPS, ClassifierDistance
from flowbook.reflow.rounds import distill, encode, rectify

__all__ = [
    "LPIPS",
    "ClassifierDistance",
    "Distance",
    "OnlinePairs",
    "PairDataset",
    "Perceptual",
    "Reflow",
    "Times",
    "curvature",
    "distill",
    "encode",
    "generate_pairs",
    "rectify",
    "reflow_loss",
    "reflow_times",
    "straightness",
    "transport_cost",
]
