"""flowbook: diffusion, continuous normalizing flows, flow matching, Reflow and inversion with one velocity.

The most frequently used names are here, each imported on first use; everything else is in the modules.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flowbook.analytic import GaussianMixture
    from flowbook.cnf import MaximumLikelihood, log_prob
    from flowbook.couplings import Independent, OptimalTransport
    from flowbook.diffusion import Diffusion, NoiseSchedule, probability_flow
    from flowbook.flow_matching import FlowMatching
    from flowbook.guidance import guided
    from flowbook.inversion import invert, round_trip
    from flowbook.models import MLP, UNet
    from flowbook.paths import CosinePath, LinearPath, VPPath
    from flowbook.reflow import Reflow, generate_pairs, rectify
    from flowbook.solvers import Solver, sample, solve
    from flowbook.training import TrainConfig, fit, load

__version__ = "0.1.0"

_HOMES = {
    "analytic": ("GaussianMixture",),
    "cnf": ("MaximumLikelihood", "log_prob"),
    "couplings": ("Independent", "OptimalTransport"),
    "diffusion": ("Diffusion", "NoiseSchedule", "probability_flow"),
    "flow_matching": ("FlowMatching",),
    "guidance": ("guided",),
    "inversion": ("invert", "round_trip"),
    "models": ("MLP", "UNet"),
    "paths": ("CosinePath", "LinearPath", "VPPath"),
    "reflow": ("Reflow", "generate_pairs", "rectify"),
    "solvers": ("Solver", "sample", "solve"),
    "training": ("TrainConfig", "fit", "load"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "MLP",
    "CosinePath",
    "Diffusion",
    "FlowMatching",
    "GaussianMixture",
    "Independent",
    "LinearPath",
    "MaximumLikelihood",
    "NoiseSchedule",
    "OptimalTransport",
    "Reflow",
    "Solver",
    "TrainConfig",
    "UNet",
    "VPPath",
    "fit",
    "generate_pairs",
    "guided",
    "invert",
    "load",
    "log_prob",
    "probability_flow",
    "rectify",
    "round_trip",
    "sample",
    "solve",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'flowbook' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"flowbook.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
