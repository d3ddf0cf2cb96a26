"""Other people's models as velocities of this book, and velocities of this book as models of others.

Everything in this package takes a velocity ``v(x, t, y=None)``, with noise at t = 0 and data at t = 1. The adapters put
the differences of other conventions in one place: the order of the arguments, the direction and the unit of time, the
sign, what the model predicts, and on which path.
"""

from flowbook.adapters.edm import from_edm
from flowbook.adapters.functions import Called, from_callable, from_torchcfm
from flowbook.adapters.outward import DiffusersLike, EDMLike, to_diffusers, to_edm
from flowbook.adapters.schedulers import from_diffusers, scheduler_grid
from flowbook.adapters.score import from_score

__all__ = [
    "Called",
    "DiffusersLike",
    "EDMLike",
    "from_callable",
    "from_diffusers",
    "from_edm",
    "from_score",
    "from_torchcfm",
    "scheduler_grid",
    "to_diffusers",
    "to_edm",
]
