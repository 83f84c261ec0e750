"""ResNet-20 on CIFAR-10, as in the paper that introduced it.

kernsym-train --prepare --config=configs/cifar10_resnet20.py
python -m kernsym_jax.train --config=configs/cifar10_resnet20.py --workdir=runs/cifar10_resnet20

Not run here: neither an accelerator nor the original images were at hand. 78,000 steps of 128
images. Published for the network: 91.25 % (He et al. 2016, table 6, with another schedule). Shows
two strided stages whose padding is uneven (u = 1) at 32 pixels; for the same at 33, where it is
even: --config.data.image_size=33.
"""

from kernsym_jax.training import default


def get_config():
    config = default()
    config.epochs = 200.0
    config.batch_size = 128
    config.eval_batch_size = 1000
    config.model.name = "cifar_resnet20"
    config.data.source = "tfds:cifar10"
    config.data.shift = 4
    config.data.flip = "horizontal"
    config.optimizer.learning_rate = 0.1
    config.optimizer.weight_decay = 1e-4
    config.log_every = 100
    config.eval_every_epochs = 5.0
    config.checkpoint_every_epochs = 5.0
    return config
