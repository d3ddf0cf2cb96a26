r"""Paths between noise and data, and conversions between the quantities that a model may predict on them.

A path mixes a noise sample :math:`x_0` and a data sample :math:`x_1`,

.. math:: x_t = \alpha(t)\, x_1 + \sigma(t)\, x_0, \qquad t = 0 \text{ noise}, \quad t = 1 \text{ data},

and its time derivative is the regression target of flow matching. The same four coefficients
:math:`\alpha, \sigma, \dot\alpha, \dot\sigma` turn a prediction of the noise, the data, the score or the velocity
into each of the others: :meth:`Path.convert`.
"""

from flowbook.paths.conversion import ConvertedVelocity, as_velocity, path_of
from flowbook.paths.path import QUANTITIES, SINGULAR_MARGIN, Path, Quantity
from flowbook.paths.retiming import Retimed, RetimedPath, retimed
from flowbook.paths.standard import CosinePath, LinearPath, VPPath

__all__ = [
    "QUANTITIES",
    "SINGULAR_MARGIN",
    "ConvertedVelocity",
    "CosinePath",
    "LinearPath",
    "Path",
    "Quantity",
    "Retimed",
    "RetimedPath",
    "VPPath",
    "as_velocity",
    "path_of",
    "retimed",
]
