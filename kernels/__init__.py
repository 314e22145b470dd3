"""The hot paths of DCLR as functions of tensors; each file holds the formula, its reference and its kernels."""

from .activation import activation_alignment, activation_map
from .augment import Augmented, augment_clip
from .crop_resize import crop_resize_yuv
from .decouple import Decoupled, decouple
from .foreground import MotionMap, merge_foreground, motion_map
from .info_nce import Ranges, info_nce, info_nce_ranges
from .pooling import DecoupledPool, decoupled_pool, weighted_pool
from .topk import TopK, topk_similarity

__all__ = [
    "Augmented",
    "Decoupled",
    "DecoupledPool",
    "MotionMap",
    "Ranges",
    "TopK",
    "activation_alignment",
    "activation_map",
    "augment_clip",
    "crop_resize_yuv",
    "decouple",
    "decoupled_pool",
    "info_nce",
    "info_nce_ranges",
    "merge_foreground",
    "motion_map",
    "topk_similarity",
    "weighted_pool",
]
