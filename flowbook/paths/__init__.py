r"""Paths between noise and data, and conversions between the quantities that a model may predict on them.

A path mixes a noise sample :math:`x_0` and a data sample :math:`x_1`,

.. math:: x_t = \alpha(t)\, x_1 + \sigma(t)\, x_0, \qquad t = 0 \text{ noise}, \quad t = 1 \text{ data},

and its time derivative is the regression target of flow matching. The same four coefficients
:math:`\alpha, \sigma, \dot\alpha, \dot\sigma` turn a prediction of the noise, the data, the score or the velocity
into each of the others: :meth:`Path.convert`.
"""

from flowbook.paths.change import ChangedPath, change_path, expected_parts
from flowbook.paths.conversion import ConvertedVelocity, as_velocity, path_of
from flowbook.paths.noise_level import crossing, karras_grid, time_of_noise
from flowbook.paths.path import QUANTITIES, SINGULAR_MARGIN, Path, Quantity
from flowbook.paths.retiming import Retimed, RetimedPath, retimed
from flowbook.paths.source import Normal, log_normal
from flowbook.paths.standard import CosinePath, LinearPath, SubVPPath, VEPath, VPPath

__all__ = [
    "QUANTITIES",
    "SINGULAR_MARGIN",
    "ChangedPath",
    "ConvertedVelocity",
    "CosinePath",
    "LinearPath",
    "Normal",
    "Path",
    "Quantity",
    "Retimed",
    "RetimedPath",
    "SubVPPath",
    "VEPath",
    "VPPath",
    "as_velocity",
    "change_path",
    "crossing",
    "expected_parts",
    "karras_grid",
    "log_normal",
    "path_of",
    "retimed",
    "time_of_noise",
]
