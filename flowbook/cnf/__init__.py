r"""Continuous normalizing flows (chapter 2): the density of a velocity's samples, by the trace identity.

.. math:: \frac{d}{dt} \log p_t(x_t) = -\nabla\!\cdot v(x_t, t)
          \quad\Longrightarrow\quad
          \log p_1(x_1) = \log p_0(x_0) - \int_0^1 \nabla\!\cdot v(x_t, t)\, dt

along the flow of v (Chen et al. 2018, theorem 1). One call works for points, images, labels and diffusion models, and
its negative mean over the data is a loss.
"""

from flowbook.cnf.density import Density, LogProb, log_prob
from flowbook.cnf.dequantization import Dequantized, bits_per_dim, dequantize, discrete_log_prob
from flowbook.cnf.images import bits_of_images
from flowbook.cnf.likelihood import Gradient, MaximumLikelihood, nll_loss

__all__ = [
    "Density",
    "Dequantized",
    "Gradient",
    "LogProb",
    "MaximumLikelihood",
    "bits_of_images",
    "bits_per_dim",
    "dequantize",
    "discrete_log_prob",
    "log_prob",
    "nll_loss",
]
