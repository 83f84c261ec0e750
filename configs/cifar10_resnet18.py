"""A ResNet of 18 layers on CIFAR-10: 3×3 stem, four stages of 64 to 512 channels, bf16 compute.

kernsym-train --prepare --config=configs/cifar10_resnet18.py
python -m kernsym_jax.train --config=configs/cifar10_resnet18.py --workdir=runs/cifar10_resnet18

Not run here: neither an accelerator nor the original images were at hand. 19,500 steps of 256
images. Shows three strided stages, and what padding and downsampling do to them:
--config.model.padding=reflect, --config.model.downsample=blur and their like.
"""

from kernsym_jax.training import default


def get_config():
    config = default()
    config.epochs = 100.0
    config.batch_size = 256
    config.eval_batch_size = 1000
    # The same blocks as ResNet-18's on maps of 32 pixels, with shortcuts that learn nothing.
    config.model.name = "cifar_resnet20"
    config.model.blocks = (2, 2, 2, 2)
    config.model.width = 64
    config.model.dtype = "bfloat16"
    config.data.source = "tfds:cifar10"
    config.data.shift = 4
    config.data.flip = "horizontal"
    config.optimizer.learning_rate = 0.2
    config.optimizer.weight_decay = 5e-4
    config.optimizer.warmup_epochs = 5.0
    config.log_every = 100
    config.eval_every_epochs = 5.0
    config.checkpoint_every_epochs = 5.0
    return config
