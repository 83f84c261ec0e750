"""A small network on scikit-learn's handwritten digits: the first run, in about a minute.

python -m kernsym_jax.train --config=configs/digits.py --workdir=runs/digits
"""

from kernsym_jax.training import default


def get_config():
    config = default()
    config.epochs = 40.0
    config.batch_size = 64
    config.model.name = "small_cnn"
    config.model.width = 16
    config.model.depth = 6
    config.model.strided = (3, 5)
    config.data.source = "digits"
    config.data.shift = 1
    config.log_every = 40
    config.eval_every_epochs = 5.0
    config.checkpoint_every_epochs = 5.0
    return config
