"""Labelled images: sources, decoding, the order in which a run sees them, augmentation."""

from kernsym_jax.data.augment import Augment, augment, normalize
from kernsym_jax.data.batches import DataBackend, DeviceBatches, epoch_order, evaluation_batches
from kernsym_jax.data.dataset import Dataset, TrainBatches, open_dataset
from kernsym_jax.data.decode import View
from kernsym_jax.data.image_set import VOID, ImageSet, MaskCoding, channel_statistics
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
    "View",
    "augment",
    "channel_statistics",
    "epoch_order",
    "evaluation_batches",
    "load",
    "normalize",
    "open_dataset",
    "prepare",
]
