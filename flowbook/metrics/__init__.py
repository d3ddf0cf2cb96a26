"""How far samples are from the data, how straight a flow is, and how good images are."""

from flowbook.metrics.distances import (
    median_wasserstein2,
    mmd,
    nearest_neighbors,
    sliced_wasserstein,
    wasserstein2,
)
from flowbook.metrics.folders import FolderScores, features_named, score_against
from flowbook.metrics.images import Moments, frechet_distance, frechet_from_moments, inception_fid, moments
from flowbook.metrics.scores import ImageScores, Scores, labels_like, score_images, score_velocity
from flowbook.metrics.trajectories import (
    curvature,
    normalized_path_energy,
    path_energy,
    straightness,
    transport_cost,
)

__all__ = [
    "FolderScores",
    "ImageScores",
    "Moments",
    "Scores",
    "curvature",
    "features_named",
    "frechet_distance",
    "frechet_from_moments",
    "inception_fid",
    "labels_like",
    "median_wasserstein2",
    "mmd",
    "moments",
    "nearest_neighbors",
    "normalized_path_energy",
    "path_energy",
    "score_against",
    "score_images",
    "score_velocity",
    "sliced_wasserstein",
    "straightness",
    "transport_cost",
    "wasserstein2",
]
