"""The handwritten digits that scikit-learn ships: 1797 real scans of 8×8 pixels."""

import numpy as np

from kernsym_jax.data.image_set import ImageSet

_TEST_PER_CLASS = 36


def load(place: str, split: str) -> ImageSet:
    """Loads the digits; 36 of every class, spread over the writers, are for testing.

    Args:
      place: must be empty, the set comes with scikit-learn.
      split: ``train`` (1437 images) or ``test`` (360).

    Returns:
      (n, 8, 8, 1) images; the scans' 17 grey levels are spread over 0 to 255.

    Raises:
      ValueError: if a place is given.
    """
    if place:
        raise ValueError(f"the source digits takes no place, got {place!r}")
    from sklearn import datasets

    scans, labels = datasets.load_digits(return_X_y=True)
    images = np.round(scans.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    # The file goes through the writers one after another: evenly spaced, the test set has them all.
    test = np.zeros(len(labels), bool)
    for digit in range(10):
        members = np.flatnonzero(labels == digit)
        test[members[np.linspace(0, len(members) - 1, _TEST_PER_CLASS).round().astype(int)]] = True
    chosen = test if split == "test" else ~test
    classes = tuple(str(digit) for digit in range(10))
    return ImageSet(images[chosen], labels[chosen].astype(np.int32), classes)
