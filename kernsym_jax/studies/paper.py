"""The paper's claims, in one sentence each."""

CLAIMS = {
    "E1": "AlexNet's mean kernels look alike and symmetric whatever the data set.",
    "E2": "So do those of VGG, ResNet and Inception variants on several data sets.",
    "E3": "The score rises with depth.",
    "E4": "Strided layers show an asymmetry that comes from uneven padding.",
    "E5": "Other paddings, anti-aliasing and SBPool reduce it.",
    "E6": "Symmetry goes along with shift consistency.",
    "E7": "Symmetry goes along with flip consistency.",
    "E8": "Symmetry emerges in training, and the data's own symmetry shapes it.",
    "E9": "Architectural choices matter.",
    "E10": "Removing the skew makes segmentation more robust.",
    "E11": "Individual kernels are directional, their mean is not.",
    "E12": "Symmetry might be an inductive bias.",
}
"""Alsallakh, Wroge, Miglani and Kokhlikyan, "On Symmetries in Convolutional Weights", 2025."""
