"""The run of a recipe: its model, data, loss and preview, and its cost."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from flowbook import couplings, models
from flowbook._core import validate
from flowbook._core.shards import Shards
from flowbook.cnf import Dequantized
from flowbook.data import Standardized, is_tensors, labels_of, standardized
from flowbook.guidance import guided
from flowbook.models.conditioning import KINDS
from flowbook.recipes.reading import Recipe, check
from flowbook.recipes.tables import COUPLINGS, DATA, LOSSES, PARTS, named
from flowbook.solvers import Solver, sample
from flowbook.training import Progress, TrainConfig, TrainResult, fit
from flowbook.training.precision import Precision, choose_device


def run(
    recipe: Recipe,
    out: str | Path | None,
    *,
    resume: bool = True,
    progress: Progress = None,
    extend: Sequence[str] = (),
) -> TrainResult:
    """Train a recipe; the same as calling :func:`~flowbook.training.fit` with the objects it names."""
    check(recipe)
    torch.manual_seed(recipe["train"].get("seed", 0))
    model = build_model(recipe)
    loss, source = build_loss(recipe), build_data(recipe)
    _check_conditions(recipe, model, source)
    coupling = named("coupling", recipe.get("coupling", {"name": "independent"}), COUPLINGS)
    return fit(
        model,
        loss,
        source,
        TrainConfig(**recipe["train"]),
        coupling=None if coupling == couplings.Independent() else coupling,
        out=out,
        resume=resume,
        preview=build_preview(recipe, model),
        recipe=recipe,
        progress=progress,
        init=recipe.get("init", {}).get("checkpoint"),
        strict=recipe.get("init", {}).get("strict", True),
        extend=extend,
    )


def announce(recipe: Recipe) -> str:
    """What a run will cost: the network, the number of samples, and how large a batch fits into memory.

    For maximum likelihood, which keeps many evaluations, the memory is not given.

    Example:
        >>> from flowbook.recipes import read
        >>> print(announce(read("digits")))  # doctest: +ELLIPSIS
        UNet: 151,137 parameters, 6.95 MFLOP for each sample and evaluation; 2,000 steps of 64
        memory: 0.01... GB or more for a step; at most ... samples fit into the ... GB of the CPU
    """
    check(recipe)
    with torch.device("meta"):  # shapes without numbers
        model = build_model(recipe)
    config = TrainConfig(**recipe["train"])
    steps = f"{config.steps:,} steps of {config.batch_size}"
    if isinstance(model, models.Classifier):
        return f"{type(model).__name__}: {sum(p.numel() for p in model.parameters()):,} parameters; {steps}"
    cost = models.cost(model, torch.zeros(1, *sample_shape(model), device="meta"))
    first = f"{type(model).__name__}: {cost}; {steps}"
    return first if recipe["loss"]["name"] == "maximum_likelihood" else f"{first}\n{_memory(cost, config)}"


def _memory(cost: models.Cost, config: TrainConfig) -> str:
    device = choose_device(config)
    if device.type == "cuda":
        total, name = torch.cuda.get_device_properties(device).total_memory, torch.cuda.get_device_name(device)
    else:
        total, name = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), "the CPU"
    precision = str(Precision(config.precision, device))
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    shards = processes if config.parallel == "fsdp" else 1
    kept = dataclasses.replace(cost, parameters=-(-cost.parameters // shards))
    need = kept.memory(-(-config.batch_size // (config.accumulate * processes)), precision)
    return (
        f"memory: {need / 1e9:.2g} GB or more for a step; at most {kept.fits(total, precision):,} samples fit into the "
        f"{total / 1e9:.3g} GB of {name}"
    )


def sample_shape(model: Any) -> tuple[int, ...]:
    """The shape of one sample of a network of this package.

    Example:
        >>> sample_shape(models.UNet(1, 8, width=8, multipliers=(1, 2)))
        (1, 8, 8)
    """
    return tuple(model.shape)


def build_model(recipe: Recipe) -> nn.Module:
    """The network of a recipe, with new parameters."""
    section = dict(recipe["model"])
    return models.build(section.pop("name"), **section)


def _check_conditions(recipe: Recipe, model: Any, source: Any) -> None:
    """Raise for a model with conditions and data without, since it would be trained on its null alone."""
    kinds = {name: value for name in KINDS if (value := getattr(model, name, None)) is not None}
    if kinds and not _labeled(source):
        given = ", ".join(f"{name} = {value}" for name, value in kinds.items())
        wanted = "labels" if list(kinds) == ["num_classes"] else "conditions"
        raise ValueError(
            f"data: {recipe['data']['name']} has no {wanted}, but the model has {given}; expected data with {wanted} "
            f"or a model without {'classes' if wanted == 'labels' else wanted}"
        )
    dropout = recipe["loss"].get("condition_dropout", 0)
    if "preview" in recipe and set(kinds) - {"num_classes"} and not dropout:
        raise ValueError(
            "preview: expected loss.condition_dropout above 0 for a model with conditions other than labels, whose "
            "previews are drawn without one"
        )


def _labeled(source: Any) -> bool:
    if isinstance(source, Standardized):
        source = source.data
    if isinstance(source, Shards):
        return source.labels is not None
    if is_tensors(source):
        return labels_of(source) is not None
    if hasattr(source, "classes"):  # a folder of images
        return source.classes is not None
    return isinstance(source, Dataset) or getattr(source, "y", None) is not None


def build_data(recipe: Recipe) -> Any:
    """The data of a recipe."""
    section = dict(recipe["data"])
    levels, scaled = section.pop("levels", None), section.pop("standardize", False)
    validate.boolean("data.standardize", scaled)
    if levels is not None and scaled:
        raise ValueError("data: expected levels or standardize; got both")
    source = named("data", section, DATA)
    if scaled:
        return standardized(source)
    return source if levels is None else Dequantized(source, levels)


def build_loss(recipe: Recipe) -> Any:
    """The loss of a recipe."""
    section = dict(recipe["loss"])
    for part in PARTS.keys() & section.keys():
        section[part] = named(f"loss.{part}", section[part], PARTS[part])
    if "solver" in section:
        section["solver"] = Solver.parse(section["solver"])
    return named("loss", section, LOSSES)


def build_preview(recipe: Recipe, model: nn.Module) -> Callable[[nn.Module], Tensor] | None:
    """Ten samples for each label (or 50 without labels), always from the same noise."""
    if "preview" not in recipe:
        return None
    options = {"solver": "midpoint:steps=20", "guidance": 1.0, **recipe["preview"]}
    validate.finite("preview.guidance", options["guidance"])
    solver = Solver.parse(options["solver"])
    if len(getattr(model, "shape", ())) != 3:
        raise ValueError(f"preview: expected a model of images; got {recipe['model']['name']}")
    classes: Any = model.num_classes if getattr(model, "kinds", ()) == ("label",) else None
    shape = sample_shape(model)

    def preview(velocity: nn.Module) -> Tensor:
        like = next(velocity.parameters())
        count = 50 if classes is None else 10 * classes
        noise = torch.randn(count, *shape, generator=torch.Generator().manual_seed(0), device="cpu").to(like)
        y = None if classes is None else torch.arange(count, device=like.device) // 10
        field = velocity
        if classes is not None and options["guidance"] != 1.0:
            field = guided(velocity, options["guidance"], classes)
        return sample(field, noise, y=y, solver=solver).x

    return preview
