"""Couplings: which noise sample is paired with which data sample.

A coupling is a callable ``coupling(x0, x1, y=None) -> (x0, x1, y)`` on a batch. Data and conditions keep their order;
only the noise is permuted, so every target and every source is used exactly once.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowbook._core import validate
from flowbook._core.assignment import assign
from flowbook._core.times import in_float64
from flowbook.condition import Condition, check_condition, rows_of
from flowbook.data import to_device

Coupled = tuple[Tensor, Tensor, Condition]
Coupling = Callable[..., Coupled]
ConditionCost = Callable[[Any], Tensor]

SINKHORN_TOLERANCE = 1e-3
SINKHORN_ITERATIONS = 2000


@dataclass(frozen=True)
class Independent:
    """Leave the batch as it was drawn: noise and data are independent.

    Example:
        >>> x0, x1 = torch.zeros(2, 1), torch.ones(2, 1)
        >>> Independent()(x0, x1)[0] is x0
        True
    """

    def __call__(self, x0: Tensor, x1: Tensor, y: Condition = None) -> Coupled:
        _check(x0, x1, y)
        return x0, x1, y


@dataclass(frozen=True)
class OptimalTransport:
    r"""Pair noise with data at the least total squared distance: minibatch optimal transport.

    The permutation that minimizes :math:`\sum_n \|x_1^{(n)} - x_0^{(\pi(n))}\|^2` (Pooladian et al. 2023; Tong et al.
    2024). A permutation rather than draws from the plan: drawing with replacement would lose a third of the targets
    of every batch.

    Args:
        method: "exact" solves the assignment problem (SciPy, on the CPU, O(B^3)). "sinkhorn" computes the entropic
            plan in the log domain, on the device of the batch, and rounds it to a permutation.
        reg: the entropic regularization of "sinkhorn", in units of the mean squared distance of the batch after
            centering noise and data, so that one value suits every dimension and scale.
        label_aware: pair only within each label; for a dict y the key of its labels. Otherwise the noise paired with a
            label no longer follows the source distribution: a conditional model would be trained on the wrong source
            (Cheng and Schwing 2025). False does so without a warning.
        condition_cost: for conditions that are no labels. A number w adds w times the squared distance of the
            rows' conditions to the cost of pairing the data of one row with the noise of another, so that noise is
            exchanged between similar conditions only (Kerrigan et al. 2024; Cheng and Schwing 2025); a number that is
            missing in one of the two rows, NaN, adds nothing. Or a function ``y -> costs`` of shape (B, B).

    Warns:
        UserWarning: once, for batches with a condition that neither of the two takes into account.

    Example:
        >>> x0, x1 = torch.tensor([[0.0], [1.0]]), torch.tensor([[11.0], [10.0]])
        >>> OptimalTransport()(x0, x1)[0]
        tensor([[1.],
                [0.]])
    """

    method: str = "exact"
    reg: float = 0.05
    label_aware: bool | str | None = None
    condition_cost: float | ConditionCost = 0.0

    def __post_init__(self) -> None:
        _check_options(self)

    def __call__(
        self,
        x0: Tensor,
        x1: Tensor,
        y: Condition = None,
    ) -> Coupled:
        _check(x0, x1, y)
        added = _added_cost(self.condition_cost, y)
        order = torch.arange(len(x0), device=x0.device)
        for rows in _groups(self, y, order.clone()):  # one, or one a label
            cost = _block(added, rows)
            chosen = self._permutation(x0[rows], x1[rows], cost)
            order[rows] = rows[chosen]
        return x0[order], x1, y

    def _permutation(self, x0: Tensor, x1: Tensor, added: Any) -> Tensor:
        """The index of the noise for each data sample, shape (B,)."""
        # The optimum depends on inner products alone;
        # centering avoids cancellation far from the origin.
        a = in_float64(x1.detach().flatten(1))
        b = in_float64(x0.detach().flatten(1))
        a, b = a - a.mean(0), b - b.mean(0)
        if len(a) == 0:
            return torch.arange(0, device=x0.device)
        _check_finite(x0=b, x1=a)
        cost = -2 * a @ b.T
        if added is not None:
            cost = cost + added.to(cost)
        if self.method == "exact":
            return to_device(assign(cost), x0.device)
        cost = cost + a.square().sum(1)[:, None] + b.square().sum(1)
        plan = _sinkhorn_log_plan(cost, self.reg)
        return to_device(_round_to_permutation(plan), x0.device)


def _block(added: Tensor | None, rows: Tensor) -> Tensor | None:
    """The added costs of some rows; they may lie on another device than the batch."""
    if added is None:
        return None
    rows = rows.to(added.device)
    return added[rows][:, rows]


def _check_options(coupling: OptimalTransport) -> None:
    validate.one_of("method", coupling.method, ("exact", "sinkhorn"))
    validate.number("reg", coupling.reg, 0, math.inf, low_open=True, high_open=True)
    if not isinstance(coupling.label_aware, str | None):
        validate.boolean("label_aware", coupling.label_aware)
    if not callable(coupling.condition_cost):
        validate.number("condition_cost", coupling.condition_cost, 0, math.inf, high_open=True)


def _groups(coupling: OptimalTransport, y: Condition, rows: Tensor) -> list[Tensor]:
    """The rows within which noise and data are paired."""
    if coupling.label_aware:
        labels = _labels(y, coupling.label_aware, len(rows)).to(rows.device)
        return [rows[labels == label] for label in labels.unique()]
    if y is not None and not callable(coupling.condition_cost) and coupling.condition_cost == 0:
        _warn_blind(coupling)
    return [rows]


def _added_cost(weight: float | ConditionCost, y: Condition) -> Tensor | None:
    """What the conditions add to the squared distances, (B, B), or None."""
    if not callable(weight) and weight == 0:
        return None
    if y is None:
        raise ValueError("y: condition_cost needs the condition of x1; got None")
    if callable(weight):
        cost = weight(y)
        validate.float_tensor("condition_cost(y)", cost, min_dim=2, finite=True)
        if cost.shape != (rows_of(y), rows_of(y)):
            raise ValueError(f"condition_cost(y): expected shape {(rows_of(y),) * 2}; got {tuple(cost.shape)}")
        return cost
    if not isinstance(y, Tensor) or not y.is_floating_point():
        raise TypeError(
            "condition_cost: expected a floating-point tensor y for a number, which weights the squared distances of "
            f"its rows; got {_described(y)}: give a function y -> costs (B, B), or use label_aware"
        )
    flat = in_float64(y.detach().reshape(len(y), -1))
    missing = flat.isnan()
    if bool(missing.any()):  # a missing number is like every other one
        known = (~missing).to(flat)
        flat = flat.nan_to_num(0.0)
        squares = flat.square() @ known.T
        return weight * (squares + squares.T - 2 * flat @ flat.T).clamp_min(0)
    return weight * torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist").square()


def _warn_blind(coupling: OptimalTransport) -> None:
    if coupling.label_aware is False or "_warned" in vars(coupling):
        return
    object.__setattr__(coupling, "_warned", True)
    warnings.warn(
        "OptimalTransport: the batches have conditions, which this coupling does not see: the noise paired with a "
        "condition will not follow the source, from which sampling draws it. Use label_aware=True for labels (or a "
        "key of a dict), condition_cost for other conditions, or label_aware=False if you mean it",
        stacklevel=3,
    )


def _labels(y: Condition, key: bool | str, batch: int) -> Tensor:
    """The labels within which noise and data are paired."""
    if y is None:
        raise ValueError("y: label_aware needs the labels of x1; got None")
    if isinstance(key, str):
        if not isinstance(y, Mapping) or key not in y:
            raise ValueError(f"label_aware: expected a dict y with the key {key!r}; got {_described(y)}")
        validate.labels(f"y.{key}", y[key], batch)
        return y[key]
    if not isinstance(y, Tensor):
        raise TypeError(
            f"label_aware: expected the key of the labels, such as label_aware='label', for {_described(y)}"
        )
    validate.labels("y", y, batch)
    return y


def _described(y: Condition) -> str:
    return f"a dict with {', '.join(map(str, y))}" if isinstance(y, Mapping) else f"a {type(y).__name__}"


def _check_finite(**parts: Tensor) -> None:
    for name, part in parts.items():
        if validate.values_are_readable(part) and not bool(torch.isfinite(part).all()):
            raise ValueError(f"{name}: expected finite numbers; got NaN or infinite ones")


def _sinkhorn_log_plan(cost: Tensor, reg: float) -> Tensor:
    """The logarithm of the entropic plan between uniform marginals (Cuturi 2013), by log-domain iterations.

    Args:
        cost: (B, B).
        reg: the entropic regularization, in units of the mean cost.
    """
    n = len(cost)
    kernel = -cost / (reg * cost.mean().clamp_min(torch.finfo(cost.dtype).tiny))
    g = torch.zeros(n, dtype=cost.dtype, device=cost.device)
    for iteration in range(SINKHORN_ITERATIONS):
        f = -torch.logsumexp(kernel + g, dim=1)
        g = -torch.logsumexp(kernel + f[:, None], dim=0)
        if iteration % 20 == 19:
            row_sums = torch.logsumexp(kernel + f[:, None] + g, dim=1).exp()
            error = float((row_sums - 1).abs().max())
            if error < SINKHORN_TOLERANCE:
                break
    else:
        warnings.warn(
            f"Sinkhorn stopped after {SINKHORN_ITERATIONS} iterations with row sums off by {error:.1e}; "
            f"a larger reg than {reg} converges faster",
            stacklevel=4,
        )
    return kernel + f[:, None] + g


def _round_to_permutation(log_plan: Tensor) -> Tensor:
    """One column for each row: in each round, rows and columns that prefer each other are paired."""
    n = len(log_plan)
    index = torch.arange(n, device=log_plan.device)
    chosen = torch.full((n,), -1, device=log_plan.device)
    left = log_plan.clone()
    while bool((chosen < 0).any()):
        column = left.argmax(1)
        mutual = (left.argmax(0)[column] == index) & (chosen < 0)
        chosen[mutual] = column[mutual]
        left[mutual] = -torch.inf
        left[:, column[mutual]] = -torch.inf
    return chosen


def couple_ahead(batches: Iterable[Coupled], coupling: Coupling) -> Iterator[Coupled]:
    """Couple the next batch in a background thread while the caller works on the current one.

    The batches are drawn in the caller's thread and in order, so a seed gives the same batches as without the thread.

    Args:
        batches: an iterable of (x0, x1, y).
        coupling: any coupling.

    Yields:
        The coupled batches, in order.

    Example:
        >>> batches = ((torch.randn(4, 2), torch.randn(4, 2), None) for _ in range(3))
        >>> len(list(couple_ahead(batches, OptimalTransport())))
        3
    """
    # By default a new thread starts as many torch threads as there are cores, and these would busy-wait.
    with ThreadPoolExecutor(
        max_workers=1, thread_name_prefix="coupling", initializer=torch.set_num_threads,
        initargs=(torch.get_num_threads(),),
    ) as pool:  # fmt: skip
        pending = None
        for x0, x1, y in batches:
            following = pool.submit(coupling, x0, x1, y)
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()


def _check(x0: Tensor, x1: Tensor, y: Condition) -> None:
    validate.float_tensor("x0", x0, min_dim=1)
    validate.float_tensor("x1", x1, min_dim=1)
    validate.same_shape("x0", x0, "x1", x1)
    check_condition("y", y, len(x1))
