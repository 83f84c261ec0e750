"""A ResNet of 18 layers on CIFAR-100: the network of configs/cifar10_resnet18.py, 100 classes.

kernsym-train --prepare --config=configs/cifar100_resnet18.py
python -m kernsym_jax.train --config=configs/cifar100_resnet18.py --workdir=runs/cifar100_resnet18

Not run here: neither an accelerator nor the images were at hand. 39,000 steps of 256 images. Shows
whether the mean kernels of CIFAR-10 are those of the architecture or of its ten classes.
"""

from kernsym_jax.training import default


def get_config():
    config = default()
    config.epochs = 200.0
    config.batch_size = 256
    config.eval_batch_size = 1000
    config.model.name = "cifar_resnet20"
    config.model.blocks = (2, 2, 2, 2)
    config.model.width = 64
    config.model.dtype = "bfloat16"
    config.data.source = "tfds:cifar100"
    config.data.shift = 4
    config.data.flip = "horizontal"
    config.optimizer.learning_rate = 0.2
    config.optimizer.weight_decay = 5e-4
    config.optimizer.warmup_epochs = 5.0
    config.log_every = 100
    config.eval_every_epochs = 5.0
    config.checkpoint_every_epochs = 5.0
    return config
