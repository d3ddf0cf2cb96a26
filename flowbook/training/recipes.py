"""Recipes: a training run as a YAML file.

    model: {name: UNet, channels: 1, size: 28, num_classes: 10}    # a class of flowbook.models and its arguments
    data: {name: mnist}                                            # a function of flowbook.data and its arguments;
                                                                   # levels: 256 dequantises anew in each batch; or
                                                                   # {name: pairs, root: FOLDER}, for Reflow
    loss: {name: flow_matching, label_dropout: 0.1}                # or reflow, diffusion, maximum_likelihood; or
                                                                   # cross_entropy, for a classifier
    init: {checkpoint: mnist}                                      # optional: the weights to start from
    coupling: {name: independent}                                  # optional
    train: {steps: 1000, batch_size: 128}                          # fields of TrainConfig
    preview: {steps: 20, guidance: 1.0}                            # optional: grids along the way

Unknown sections and unknown keys are refused.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math
import os
import re
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.utils.data import Dataset

from flowbook import _validate, couplings, data, models, paths
from flowbook.cnf import MaximumLikelihood
from flowbook.dequantization import Dequantized
from flowbook.diffusion import Diffusion, NoiseSchedule
from flowbook.flow_matching import FlowMatching, guided
from flowbook.models.classifier import CrossEntropy
from flowbook.pairs import PairDataset
from flowbook.perceptual import LPIPS, ClassifierDistance
from flowbook.reflow import Reflow
from flowbook.solvers import FIXED, METHODS, solve
from flowbook.training import checkpoint as checkpoints
from flowbook.training.config import TrainConfig
from flowbook.training.loop import TrainResult, fit
from flowbook.training.precision import choose_device, resolve_precision

Recipe = dict[str, Any]


def pairs(root: str) -> PairDataset:
    return PairDataset(root)


def classifier_distance(weights: str) -> ClassifierDistance:
    return ClassifierDistance(models.load_classifier(weights))


DATA: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        data.two_gaussians, data.eight_gaussians, data.moons, data.checkerboard, data.spirals, data.pinwheel,
        data.digits, data.mnist, data.fashion_mnist, data.cifar10, data.image_folder, pairs,
    )
}  # fmt: skip
COUPLINGS = {"independent": couplings.Independent, "optimal_transport": couplings.OptimalTransport}
PATHS = {"linear": paths.LinearPath, "cosine": paths.CosinePath, "vp": paths.VPPath}
SCHEDULES: dict[str, Callable[..., Any]] = {"linear": NoiseSchedule.linear, "cosine": NoiseSchedule.cosine}
PERCEPTUAL: dict[str, Callable[..., Any]] = {"lpips": LPIPS, "classifier": classifier_distance}
LOSSES: dict[str, Callable[..., Any]] = {
    "flow_matching": FlowMatching, "diffusion": Diffusion, "maximum_likelihood": MaximumLikelihood,
    "cross_entropy": CrossEntropy, "reflow": Reflow,
}  # fmt: skip
PARTS: dict[str, Mapping[str, Callable[..., Any]]] = {
    "path": PATHS, "schedule": SCHEDULES, "perceptual": PERCEPTUAL,
}  # fmt: skip
"""The arguments of a loss that are sections themselves."""
SECTIONS = ("model", "init", "data", "loss", "coupling", "train", "preview")


def names() -> list[str]:
    """The recipes that come with the package.

    Example:
        >>> "mnist" in names()
        True
    """
    folder = resources.files("flowbook") / "recipes"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def read(recipe: str | Path, overrides: list[str] | None = None) -> Recipe:
    """A recipe by its name in the package or by the path of a YAML file.

    Args:
        recipe: ``"mnist"`` or ``"my/recipe.yaml"``.
        overrides: ``"section.key=value"``; values are read as YAML.

    Example:
        >>> read("mnist", ["train.steps=10"])["train"]["steps"]
        10
    """
    if str(recipe) in names():
        text = (resources.files("flowbook") / "recipes" / f"{recipe}.yaml").read_text()
    elif Path(recipe).is_file():
        text = Path(recipe).read_text()
    else:
        raise FileNotFoundError(f"recipe: {recipe} is neither a file nor one of {', '.join(names())}")
    content = _yaml(text)
    if not isinstance(content, dict):
        raise ValueError(f"recipe: {recipe} holds no sections; expected {', '.join(SECTIONS)}")
    return override(content, overrides or [])


def override(recipe: Recipe, overrides: list[str]) -> Recipe:
    """A recipe with some fields changed, each given as ``"section.key=value"``, and checked.

    Example:
        >>> override(read("mnist"), ["train.steps=10"])["train"]["steps"]
        10
    """
    content = copy.deepcopy(recipe)
    for text in overrides:
        key, separator, value = text.partition("=")
        section, dot, field = key.partition(".")
        if not (separator and dot):
            raise ValueError(f"override: expected section.key=value; got {text!r}")
        if not isinstance(content.setdefault(section, {}), dict):
            raise ValueError(f"recipe: the section {section!r} holds no keys; got {content[section]!r}")
        content[section][field] = _yaml(value)
    _check(content)
    for section in ("model", "data", "loss", "coupling", "train"):
        if section in content:
            _whole_numbers(content[section], _target(section, content[section]))
    return content


def run(recipe: Recipe, out: str | Path | None, *, resume: bool = True, progress: bool | None = None) -> TrainResult:
    """Train what a recipe says; the same as calling :func:`fit` with the objects it names."""
    _check(recipe)
    torch.manual_seed(recipe["train"].get("seed", 0))
    model = build_model(recipe)
    if "init" in recipe:
        start_from(model, recipe["init"]["checkpoint"])
    loss, source = build_loss(recipe), build_data(recipe)
    classes = getattr(model, "num_classes", None)
    if classes is not None and not _labelled(source):
        raise ValueError(
            f"data: {recipe['data']['name']} has no labels, but the model has num_classes = {classes}; expected "
            "labelled data or a model without classes"
        )
    coupling = _named(recipe.get("coupling", {"name": "independent"}), COUPLINGS)
    return fit(
        model, loss, source, TrainConfig(**recipe["train"]),
        coupling=None if coupling == couplings.Independent() else coupling,
        out=out, resume=resume, preview=build_preview(recipe, model), recipe=recipe, progress=progress,
    )  # fmt: skip


def announce(recipe: Recipe) -> str:
    """What a run will cost: the network, how many samples it will see, and how large a batch fits into memory.

    Of maximum likelihood, which keeps many evaluations, it says nothing about memory.

    Example:
        >>> print(announce(read("digits")))  # doctest: +ELLIPSIS
        UNet: 151,137 weights, 6.95 MFLOP for each sample and evaluation; 2,000 steps of 64
        memory: 0.01... GB or more for a step; at most ... samples fit into the ... GB of the CPU
    """
    _check(recipe)
    with torch.device("meta"):  # shapes without numbers
        model = build_model(recipe)
    config = TrainConfig(**recipe["train"])
    steps = f"{config.steps:,} steps of {config.batch_size}"
    if isinstance(model, models.Classifier):
        return f"{type(model).__name__}: {sum(p.numel() for p in model.parameters()):,} weights; {steps}"
    shape = (model.dim,) if isinstance(model, models.MLP) else (model.channels, model.size, model.size)
    cost = models.cost(model, torch.zeros(1, *shape, device="meta"))
    if recipe["loss"]["name"] == "maximum_likelihood":
        return f"{type(model).__name__}: {cost}; {steps}"
    device = choose_device(config)
    if device.type == "cuda":
        total, name = torch.cuda.get_device_properties(device).total_memory, torch.cuda.get_device_name(device)
    else:
        total, name = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), "the CPU"
    precision = resolve_precision(config.precision, device)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    shares = processes if config.parallel == "fsdp" else 1
    kept = dataclasses.replace(cost, weights=-(-cost.weights // shares))
    need = kept.memory(-(-config.batch_size // (config.accumulate * processes)), precision)
    return (
        f"{type(model).__name__}: {cost}; {steps}\n"
        f"memory: {need / 1e9:.2g} GB or more for a step; at most {kept.fits(total, precision):,} samples fit into the "
        f"{total / 1e9:.3g} GB of {name}"
    )


def build_model(recipe: Recipe) -> nn.Module:
    section = dict(recipe["model"])
    return models.build(section.pop("name"), **section)


def start_from(model: nn.Module, checkpoint: str) -> None:
    """Give a model the averaged weights of a checkpoint, or shipped weights."""
    teacher = load_velocity(checkpoint)
    if models.describe(teacher) != models.describe(model):
        raise ValueError(
            f"init.checkpoint: expected the weights of {models.describe(model)}; {checkpoint} holds "
            f"{models.describe(teacher) or type(teacher).__name__}"
        )
    model.load_state_dict(teacher.state_dict())


def load_velocity(checkpoint: str) -> nn.Module:
    """Shipped weights by name, else the averaged weights of a run.

    Example:
        >>> load_velocity("mnist").num_classes
        10
    """
    return models.load_pretrained(checkpoint) if checkpoint in models.PRETRAINED else checkpoints.load(checkpoint)


def _labelled(source: Any) -> bool:
    if isinstance(source, PairDataset):
        return source.labels is not None
    return isinstance(source, (tuple, Dataset)) or getattr(source, "y", None) is not None


def build_data(recipe: Recipe) -> Any:
    section = dict(recipe["data"])
    levels = section.pop("levels", None)
    source = _named(section, DATA)
    return source if levels is None else Dequantized(source, levels)


def build_loss(recipe: Recipe) -> Any:
    section = dict(recipe["loss"])
    for part in PARTS.keys() & section.keys():
        section[part] = _named(section[part], PARTS[part])
    return _named(section, LOSSES)


def build_preview(recipe: Recipe, model: nn.Module) -> Callable[[nn.Module], Tensor] | None:
    """Ten samples for each label (or 50 without labels), always from the same noise."""
    if "preview" not in recipe:
        return None
    options = {"steps": 20, "guidance": 1.0, "method": "midpoint", **recipe["preview"]}
    _validate.positive_int("preview.steps", options["steps"])
    _validate.number("preview.guidance", options["guidance"], -math.inf, math.inf)
    _validate.one_of("preview.method", options["method"], METHODS)
    steps = options["steps"] if options["method"] in FIXED else None
    if not hasattr(model, "size"):
        raise ValueError(f"preview: expected a model of images; got {recipe['model']['name']}")
    classes: int | None = getattr(model, "num_classes", None)
    shape = (int(model.channels), int(model.size), int(model.size))  # type: ignore[arg-type]

    def preview(velocity: nn.Module) -> Tensor:
        like = next(velocity.parameters())
        count = 50 if classes is None else 10 * classes
        noise = torch.randn(count, *shape, generator=torch.Generator().manual_seed(0)).to(like)
        y = None if classes is None else torch.arange(count, device=like.device) // 10
        field = velocity
        if classes is not None and options["guidance"] != 1.0:
            field = guided(velocity, options["guidance"], classes)
        return solve(field, noise, y=y, method=options["method"], steps=steps).x

    return preview


class _Loader(yaml.SafeLoader):
    """YAML 1.1, but ``1e-3`` is a number: as written in Python and everywhere else, without a dot."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _yaml(text: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"recipe: expected YAML; {error}") from error


def _check(recipe: Recipe) -> None:
    for section, content in recipe.items():
        _validate.one_of("recipe section", section, SECTIONS)
        if not isinstance(content, dict):
            raise ValueError(f"recipe: the section {section!r} holds no keys; got {content!r}")
    for section in ("model", "data", "loss", "train"):
        if not isinstance(recipe.get(section), dict):
            raise ValueError(f"recipe: the section {section!r} is missing or holds no keys")
    _validate.one_of("model.name", recipe["model"].get("name"), tuple(models.CLASSES))
    _validate.one_of("data.name", recipe["data"].get("name"), tuple(DATA))
    _validate.one_of("loss.name", recipe["loss"].get("name"), tuple(LOSSES))
    for section in ("model", "data", "loss", "train"):
        _keys(section, recipe[section], _target(section, recipe[section]))
    for part in PARTS.keys() & recipe["loss"].keys():
        content, table = recipe["loss"][part], PARTS[part]
        if not isinstance(content, dict):
            raise ValueError(f"recipe: loss.{part} is a section, such as {{name: linear}}; got {content!r}")
        _validate.one_of(f"loss.{part}.name", content.get("name"), tuple(table))
        _keys(f"loss.{part}", content, table[content["name"]])
    if "coupling" in recipe:
        _validate.one_of("coupling.name", recipe["coupling"].get("name"), tuple(COUPLINGS))
        _keys("coupling", recipe["coupling"], _target("coupling", recipe["coupling"]))
    if "init" in recipe and list(recipe["init"]) != ["checkpoint"]:
        raise ValueError(f"recipe: init has one key, checkpoint; got {', '.join(recipe['init']) or 'none'}")
    for key in recipe.get("preview", {}):
        _validate.one_of("preview key", key, ("steps", "guidance", "method"))


def _keys(section: str, content: dict[str, Any], target: Callable[..., Any]) -> None:
    parameters = inspect.signature(target).parameters
    needed = [name for name, one in parameters.items() if one.default is one.empty and one.kind is not one.VAR_KEYWORD]
    if lacking := sorted(set(needed) - set(content)):
        raise ValueError(f"recipe: {section} lacks {', '.join(lacking)}")
    known = set(parameters)
    known -= {"coupling"}  # of a loss; the recipe has a section for it, whose batches are coupled ahead
    known |= set() if section == "train" else {"name"}
    known |= {"levels"} if section == "data" else set()
    if unknown := sorted(set(content) - known):
        raise ValueError(f"recipe: {section} has no key {', '.join(unknown)}; it has {', '.join(sorted(known))}")


def _target(section: str, content: dict[str, Any]) -> Callable[..., Any]:
    """The class or function whose arguments a section holds."""
    tables: dict[str, Mapping[str, Callable[..., Any]]] = {
        "model": models.CLASSES,
        "data": DATA,
        "loss": LOSSES,
        "coupling": COUPLINGS,
    }
    return tables[section][content["name"]] if section in tables else TrainConfig


def _whole_numbers(content: dict[str, Any], target: Callable[..., Any]) -> None:
    """1e3 is a float in YAML, but a fine number of steps."""
    for name, parameter in inspect.signature(target).parameters.items():
        value = content.get(name)
        if parameter.annotation in ("int", "int | None") and isinstance(value, float) and value.is_integer():
            content[name] = int(value)


def _named(section: dict[str, Any], table: Mapping[str, Callable[..., Any]]) -> Any:
    arguments = dict(section)
    name = arguments.pop("name", None)
    _validate.one_of("name", name, tuple(table))
    return table[name](**arguments)
