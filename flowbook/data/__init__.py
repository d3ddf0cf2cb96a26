"""The data of the book, distributions in the plane and images, and the format of a batch.

Planar data have ``.sample(n, generator=None) -> (n, 2)``, and ``.log_prob(x)`` where the density is known. Image data
are tensors ``(images, labels)``: images (N, C, H, W) in [-1, 1], labels (N,).
"""

from flowbook.analytic import eight_gaussians, two_gaussians
from flowbook.data.batch import Batch, is_tensors, labels_of, map_batch, parts_of, to_device, unpack
from flowbook.data.files import condition, tensors
from flowbook.data.generated_images import GenerationOptions, ImageShards, generate_images, to_bytes
from flowbook.data.images import (
    ImageTensors,
    cifar10,
    data_root,
    digits,
    fashion_mnist,
    gray_levels,
    image_folder,
    mnist,
    to_unit_interval,
)
from flowbook.data.out_of_distribution import CORRUPTIONS, corrupt, letters, photo_patches
from flowbook.data.planar import Planar, Source, Unpaired, checkerboard, moons, pinwheel, spirals

__all__ = [
    "CORRUPTIONS",
    "Batch",
    "GenerationOptions",
    "ImageShards",
    "ImageTensors",
    "Planar",
    "Source",
    "Unpaired",
    "checkerboard",
    "cifar10",
    "condition",
    "corrupt",
    "data_root",
    "digits",
    "eight_gaussians",
    "fashion_mnist",
    "generate_images",
    "gray_levels",
    "image_folder",
    "is_tensors",
    "labels_of",
    "letters",
    "map_batch",
    "mnist",
    "moons",
    "parts_of",
    "photo_patches",
    "pinwheel",
    "spirals",
    "tensors",
    "to_bytes",
    "to_device",
    "to_unit_interval",
    "two_gaussians",
    "unpack",
]
