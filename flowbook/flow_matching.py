r"""Flow matching (chapter 3): learn a velocity by regression on the velocities of single pairs.

.. math:: L(v) = \mathbb{E}_{t,\, x_0,\, x_1} \big\| v(x_t, t) - \dot x_t \big\|^2,
          \qquad x_t = \alpha(t)\, x_1 + \sigma(t)\, x_0

has the same gradient as the regression on the marginal velocity, which is intractable (Lipman et al. 2023, theorem 2).
The code, and every number printed, averages the squared norm over the dimensions instead of summing it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from flowbook._core import keyed, validate
from flowbook.condition import Condition, Null
from flowbook.couplings import Coupling, Independent
from flowbook.data import unpack
from flowbook.guidance import Dropout, check_dropout, check_labels, drop_condition
from flowbook.paths import LinearPath, Path
from flowbook.velocity import Velocity, call


def flow_matching_loss(
    velocity: Velocity,
    x1: Tensor,
    *,
    x0: Tensor | None = None,
    y: Condition = None,
    path: Path = LinearPath(),  # noqa: B008 (frozen)
    coupling: Coupling = Independent(),  # noqa: B008 (frozen)
    t: Tensor | float | None = None,
    condition_dropout: Dropout = 0.0,
    null: Null = None,
) -> Tensor:
    """The mean squared error of the velocity against the conditional one, over batch and dimensions.

    Args:
        velocity: the model, ``v(x, t, y=None)``.
        x1: data, shape (B, ...).
        x0: noise, shape (B, ...); drawn from N(0, I) when None.
        y: the condition, any that the model takes, or None.
        path: how noise and data are mixed.
        coupling: pairs the noise and data of the batch, before the times are drawn.
        t: times in [0, 1], a scalar or shape (B,); uniform when None.
        condition_dropout: the probability with which a sample's condition is replaced by the null, for classifier-free
            guidance (Ho and Salimans 2022); for a dict y also a dict of probabilities, one for each key to be dropped.
        null: what stands for "no condition"; by default the model's own ``null``.

    Returns:
        The loss, a scalar. Lipman et al. 2023, equation 14; with LinearPath(), Liu et al. 2023, equation 1.

    Raises:
        ValueError, TypeError: for invalid shapes, dtypes, times or labels; the message names the argument.

    Example:
        >>> x0, x1 = torch.zeros(4, 2), torch.ones(4, 2)
        >>> flow_matching_loss(lambda x, t, y=None: torch.ones_like(x), x1, x0=x0)
        tensor(0.)
    """
    validate.float_tensor("x1", x1, min_dim=1)
    _check_options(path, coupling, condition_dropout)
    if x0 is None:
        x0 = keyed.randn_like(x1)
    x0, x1, y = coupling(x0, x1, y)
    if t is None:
        validate.same_shape("x0", x0, "x1", x1)
        t = keyed.rand(len(x1), like=x1, high=path.last_velocity_time)
        xt, target = path.interpolate_and_velocity(x0, x1, t)
    else:
        xt, target = path.interpolate(x0, x1, t), path.velocity(x0, x1, t)
    y = drop_condition(velocity, x1, y, condition_dropout, null)
    v = call(velocity, xt, t, y)
    validate.same_shape("velocity(xt, t, y)", v, "x1", x1)
    return (v - target).square().mean()


def _check_options(path: Path, coupling: Coupling, condition_dropout: Dropout) -> None:
    validate.instance("path", path, Path, "LinearPath()")
    validate.function("coupling", coupling, "OptimalTransport()")
    check_dropout(condition_dropout)


@dataclass(frozen=True)
class FlowMatching:
    """:func:`flow_matching_loss` with its options chosen, as the ``loss(velocity, batch)`` that ``fit`` expects.

    A batch is x1, (x1, y) or (x0, x1, y).

    Example:
        >>> FlowMatching()(lambda x, t, y=None: torch.ones_like(x), (torch.zeros(4, 2), torch.ones(4, 2), None))
        tensor(0.)
    """

    path: Path = LinearPath()
    coupling: Coupling = Independent()
    condition_dropout: Dropout = 0.0

    def __post_init__(self) -> None:
        _check_options(self.path, self.coupling, self.condition_dropout)

    def check(self, network: nn.Module, data: Any) -> None:
        """Raise ValueError if a label of tensor data is not a class of the network; the null label is none."""
        check_labels(network, data)

    def __call__(self, velocity: Velocity, batch: Any) -> Tensor:
        x0, x1, y = unpack(batch)
        return flow_matching_loss(
            velocity, x1, x0=x0, y=y, path=self.path, coupling=self.coupling, condition_dropout=self.condition_dropout
        )
