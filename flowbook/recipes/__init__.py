"""Recipes: a training run as a YAML file::

    model: {name: UNet, channels: 1, size: 28, num_classes: 10}    # a class of flowbook.models and its arguments
    data: {name: mnist}                                            # a function of flowbook.data and its arguments;
                                                                   # levels: 256 dequantizes anew in each batch; or
                                                                   # {name: tensors, path: FILE}, your own arrays;
                                                                   # {name: pairs, root: FOLDER}, for Reflow
    loss: {name: flow_matching, condition_dropout: 0.1}                # or reflow, diffusion, maximum_likelihood; or
                                                                   # cross_entropy, for a classifier
    init: {checkpoint: mnist}                                      # optional: the parameters to start from; with
                                                                   # strict: false, those of them that fit
    coupling: {name: independent}                                  # optional
    train: {steps: 1000, batch_size: 128}                          # fields of TrainConfig
    preview: {solver: "midpoint:steps=20", guidance: 1.0}          # optional: grids of samples during training

Unknown sections and unknown keys are rejected.
"""

from flowbook.recipes.building import (
    announce,
    build_data,
    build_loss,
    build_model,
    build_preview,
    run,
    sample_shape,
)
from flowbook.recipes.inferred import own_data
from flowbook.recipes.reading import Recipe, about, check, names, override, read, text_of
from flowbook.recipes.speed import Bench, bench

__all__ = [
    "Bench",
    "Recipe",
    "about",
    "announce",
    "bench",
    "build_data",
    "build_loss",
    "build_model",
    "build_preview",
    "check",
    "names",
    "override",
    "own_data",
    "read",
    "run",
    "sample_shape",
    "text_of",
]
