"""Score models of the three SDEs of Song et al. (2021)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from flowbook._core import validate
from flowbook.adapters.functions import Called, Order
from flowbook.condition import Condition, Null
from flowbook.paths import ConvertedVelocity, Path, SubVPPath, VEPath, VPPath
from flowbook.velocity import Wrapper

SDE = Literal["vp", "ve", "subvp"]
SDES: tuple[SDE, ...] = get_args(SDE)


def from_score(
    score: Callable[..., Any],
    sde: SDE = "vp",
    *,
    beta_min: float = 0.1,
    beta_max: float = 20.0,
    sigma_min: float = 0.01,
    sigma_max: float = 50.0,
    argument: Literal["time", "sigma"] = "time",
    time_scale: float = 1.0,
    order: Order = "x,t",
    condition: str | None = None,
    null: Null = None,
    **fixed: Any,
) -> ConvertedVelocity:
    r"""A score model as a velocity: the probability flow of its SDE (Song et al. 2021, equation 13).

    Args:
        score: ``score(x, s)``, the gradient of the log-density of x at their time s = 1 - t, with data at s = 0.
        sde: "vp", "ve" or "subvp", their equations 33, 31 and 29.
        beta_min, beta_max: of "vp" and "subvp".
        sigma_min, sigma_max: of "ve"; sampling starts from noise of standard deviation ``sigma_max``, see
            ``velocity.path.source(shape)``.
        argument: what score is called with: "time", or "sigma", the noise level, as their networks for "ve" are.
        time_scale: "time" is multiplied by this, 999 for their networks for "vp" and "subvp".
        order, condition, null, fixed: as in :func:`~flowbook.adapters.from_callable`.

    Returns:
        A velocity ``v(x, t, y=None)``.

    Raises:
        ValueError, TypeError: for invalid arguments.

    Example:
        >>> from flowbook.solvers import sample
        >>> v = from_score(lambda x, s: -x, "vp")  # data from N(0, I) stay N(0, I)
        >>> x0 = torch.tensor([[2.0, -1.0]])
        >>> sample(v, x0).x.round(decimals=3)
        tensor([[ 2., -1.]])
    """
    validate.one_of("sde", sde, SDES)
    validate.one_of("argument", argument, ("time", "sigma"))
    paths: dict[SDE, Callable[[], Path]] = {
        "vp": lambda: VPPath(beta_min, beta_max),
        "ve": lambda: VEPath(sigma_min, sigma_max, rho=math.inf),
        "subvp": lambda: SubVPPath(beta_min, beta_max),
    }
    path = paths[sde]()
    if argument == "sigma" and time_scale != 1:
        raise ValueError(f"time_scale: expected 1 with argument='sigma', a noise level; got {time_scale}")
    model: nn.Module = Called(
        score, order=order, time_scale=time_scale, reverse=argument == "time", condition=condition, null=null,
        fixed=fixed,
    )  # fmt: skip
    if argument == "sigma":
        model = AtSigma(model, path)
    return ConvertedVelocity(model, path, "score")


class AtSigma(Wrapper):
    """A model of state and noise level as one of state and time."""

    _inner = "model"

    def __init__(self, model: nn.Module, path: Path):
        super().__init__()
        self.model, self.path = model, path

    def forward(self, x: Tensor, t: Tensor | float, y: Condition = None) -> Tensor:
        sigma = self.path.sigma(torch.as_tensor(t, dtype=x.dtype, device=x.device))
        return self.model(x, sigma) if y is None else self.model(x, sigma, y)
