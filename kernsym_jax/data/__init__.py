"""Labelled images: where they come from, in which order they are seen, how they are varied."""

from kernsym_jax.data.augment import Augment, augment, normalize
from kernsym_jax.data.dataset import Dataset, TrainBatches, open_dataset
from kernsym_jax.data.image_set import VOID, ImageSet, channel_statistics
from kernsym_jax.data.mask import MaskCoding
from kernsym_jax.data.order import DataBackend, DeviceBatches, epoch_order, evaluation_batches
from kernsym_jax.data.sources import load, prepare

__all__ = [
    "VOID",
    "Augment",
    "DataBackend",
    "Dataset",
    "DeviceBatches",
    "ImageSet",
    "MaskCoding",
    "TrainBatches",
    "augment",
    "channel_statistics",
    "epoch_order",
    "evaluation_batches",
    "load",
    "normalize",
    "open_dataset",
    "prepare",
]
