"""ResNet-18 on Places365 (its 256×256 version): scenes instead of objects.

kernsym-train --prepare --config=configs/places365_resnet18.py
python -m kernsym_jax.train --config=configs/places365_resnet18.py --workdir=runs/places365_resnet18

Not run here: neither accelerators nor the images were at hand. 52,830 steps of 1024 images. Shows
whether scenes, which have a floor and a sky, give other mean kernels than ImageNet's objects.
"""

from kernsym_jax.training import default


def get_config():
    config = default()
    config.epochs = 30.0
    config.batch_size = 1024
    config.eval_batch_size = 1024
    config.model.name = "resnet18"
    config.model.dtype = "bfloat16"
    config.data.source = "tfds:places365_small"
    config.data.streaming = True
    config.data.crop_size = 224
    config.data.flip = "horizontal"
    config.data.mean = (0.485, 0.456, 0.406)
    config.data.std = (0.229, 0.224, 0.225)
    config.optimizer.learning_rate = 0.4
    config.optimizer.weight_decay = 1e-4
    config.optimizer.warmup_epochs = 3.0
    config.log_every = 100
    return config
