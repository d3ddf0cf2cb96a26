"""The data of the book, distributions in the plane and images, and the format of a batch.

Planar data have ``.sample(n, generator=None) -> (n, 2)``, and ``.log_prob(x)`` where the density is known. Image data
are tensors ``(images, labels)``: images (N, C, H, W) in [-1, 1], labels (N,).
"""

from flowbook.analytic import eight_gaussians, two_gaussians
from flowbook.data.batch import Batch, is_tensors, labels_of, map_batch, parts_of, to_device, unpack
from flowbook.data.conversion import Columns, Paired, Standardized, as_data, first_item, standardized
from flowbook.data.files import condition, tensors
from flowbook.data.folders import ImageFolder, ImageReader, find_images, image_folder
from flowbook.data.generated_images import GenerationOptions, ImageShards, generate_images, to_bytes
from flowbook.data.image_files import generate_files
from flowbook.data.images import (
    ImageTensors,
    cifar10,
    data_root,
    digits,
    fashion_mnist,
    gray_levels,
    mnist,
    to_unit_interval,
)
from flowbook.data.out_of_distribution import CORRUPTIONS, corrupt, letters, photo_patches
from flowbook.data.planar import (
    Items,
    Planar,
    Rows,
    Source,
    Unpaired,
    checkerboard,
    identity_of,
    moons,
    pinwheel,
    spirals,
)
from flowbook.data.standardizer import Standardizer

__all__ = [
    "CORRUPTIONS",
    "Batch",
    "Columns",
    "GenerationOptions",
    "ImageFolder",
    "ImageReader",
    "ImageShards",
    "ImageTensors",
    "Items",
    "Paired",
    "Planar",
    "Rows",
    "Source",
    "Standardized",
    "Standardizer",
    "Unpaired",
    "as_data",
    "checkerboard",
    "cifar10",
    "condition",
    "corrupt",
    "data_root",
    "digits",
    "eight_gaussians",
    "fashion_mnist",
    "find_images",
    "first_item",
    "generate_files",
    "generate_images",
    "gray_levels",
    "identity_of",
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
    "standardized",
    "tensors",
    "to_bytes",
    "to_device",
    "to_unit_interval",
    "two_gaussians",
    "unpack",
]
