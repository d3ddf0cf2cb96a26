"""The objects that the names in a recipe refer to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flowbook import couplings, data, models, paths
from flowbook._core import validate
from flowbook.cnf import MaximumLikelihood
from flowbook.diffusion import Diffusion, NoiseSchedule
from flowbook.flow_matching import FlowMatching
from flowbook.reflow import LPIPS, ClassifierDistance, PairDataset, Reflow

Table = Mapping[str, Callable[..., Any]]


def pairs(root: str) -> PairDataset:
    return PairDataset(Path(root).expanduser())


def classifier_distance(weights: str) -> ClassifierDistance:
    return ClassifierDistance(models.load_classifier(weights))


DATA: Table = {
    function.__name__: function
    for function in (
        data.two_gaussians, data.eight_gaussians, data.moons, data.checkerboard, data.spirals, data.pinwheel,
        data.digits, data.mnist, data.fashion_mnist, data.cifar10, data.image_folder, data.tensors, pairs,
    )
}  # fmt: skip
COUPLINGS: Table = {"independent": couplings.Independent, "optimal_transport": couplings.OptimalTransport}
PATHS: Table = {"linear": paths.LinearPath, "cosine": paths.CosinePath, "vp": paths.VPPath}
NOISE_SCHEDULES: Table = {"linear": NoiseSchedule.linear, "cosine": NoiseSchedule.cosine}
PERCEPTUAL: Table = {"lpips": LPIPS, "classifier": classifier_distance}
MODELS: Table = models.CLASSES
LOSSES: Table = {
    "flow_matching": FlowMatching, "diffusion": Diffusion, "maximum_likelihood": MaximumLikelihood,
    "cross_entropy": models.CrossEntropy, "reflow": Reflow,
}  # fmt: skip
PARTS: dict[str, Table] = {
    "path": PATHS, "schedule": NOISE_SCHEDULES, "perceptual": PERCEPTUAL,
}  # fmt: skip
"""The arguments of a loss that are sections of their own."""


def named(what: str, section: Any, table: Table) -> Any:
    """The object that a section's name stands for, made with the section's other entries.

    Example:
        >>> named("path", {"name": "linear", "sigma_min": 0.1}, PATHS)
        LinearPath(sigma_min=0.1)
    """
    arguments = {"name": section} if isinstance(section, str) else section
    if not isinstance(arguments, Mapping):
        raise ValueError(
            f"{what}: expected a name or a section, such as {{name: {next(iter(table))}}}; got {section!r}"
        )
    arguments = dict(arguments)
    name = arguments.pop("name", None)
    validate.one_of(f"{what}.name", name, tuple(table))
    return table[name](**arguments)
