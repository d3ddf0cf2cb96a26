"""Editing the condition of data: what it does not determine is preserved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Unpack

from torch import Tensor

from flowbook._core import validate
from flowbook.condition import Condition, Null, check_condition
from flowbook.guidance import Guided, guided
from flowbook.solvers import SolverOptions, as_solver, solve
from flowbook.solvers.solution import refuse
from flowbook.velocity import Velocity, said_by, unwrapped


@dataclass(frozen=True)
class Edit:
    """What :func:`edit` returns."""

    x: Tensor
    """The data under the new condition, shape (B, ...)."""
    state: Tensor
    """The state in which the condition was changed, at t = 1 - strength; the latent for strength 1. Shape (B, ...)."""
    nfe: int
    """The number of model calls, both directions together; a guided evaluation counts two."""


def edit(
    velocity: Velocity,
    x1: Tensor,
    y: Condition,
    new_y: Condition,
    *,
    guidance: float = 1.0,
    null: Null = None,
    strength: float = 1.0,
    **solver: Unpack[SolverOptions],
) -> Edit:
    """Invert under one condition, generate under another: what the condition does not determine is preserved.

    The backward solve to the noise is without guidance, since the source of a guided flow is not the noise: a guided
    velocity takes data to latents that are not distributed as N(0, I).

    Args:
        velocity: a conditional velocity, without guidance.
        x1: data, shape (B, ...).
        y: their condition, such as labels of shape (B,).
        new_y: the new condition.
        guidance: scale of classifier-free guidance toward the new condition; 1 is none.
        null: what stands for "no condition", for guidance; by default the model's own.
        strength: the length of the backward solve, in (0, 1]. The condition is changed at t = 1 - strength, and what
            the state there already determines is kept.
        solver: a :class:`~flowbook.solvers.Solver` as ``solver``, or its fields. A fixed-step method takes its
            ``steps`` in each direction; a ``grid`` is cut at t = 1 - strength.

    Example:
        >>> toward = lambda x, t, y: y[:, None].to(x).expand_as(x)  # label k moves by k
        >>> edit(toward, torch.ones(1, 2), torch.tensor([1]), torch.tensor([5]), method="euler", steps=1).x
        tensor([[5., 5.]])
    """
    refuse(solver, ("t0", "t1"), "edit changes direction at t = 1 - strength")
    refuse(solver, ("save_at",), "edit returns the ends of its solves only")
    validate.float_tensor("x1", x1, min_dim=1, finite=True)
    for name, condition in (("y", y), ("new_y", new_y)):
        check_condition(name, condition, len(x1), velocity)
    validate.number("strength", strength, 0, 1, low_open=True)
    validate.finite("guidance", guidance)
    if isinstance(unwrapped(velocity), Guided):
        raise TypeError("velocity: expected one without guidance; got a guided one, pass the guidance scale instead")
    field = velocity if guidance == 1.0 else guided(velocity, guidance, null)
    turn = 1.0 - strength
    chosen = as_solver(solver).between(turn, 1.0)
    scale = said_by(velocity, "standardizer")
    there = solve(velocity, x1 if scale is None else scale(x1), 1.0, turn, y=y, solver=chosen)
    back = solve(field, there.x, turn, 1.0, y=new_y, solver=chosen)
    return Edit(back.x if scale is None else scale.undo(back.x), there.x, there.nfe + back.nfe)
