"""ResNet-18 on ImageNet at 225 pixels, where no padding is uneven, against 224, where all are.

kernsym-train --prepare --config=configs/imagenet_resnet18_225.py
python -m kernsym_jax.train --config=configs/imagenet_resnet18_225.py --workdir=runs/imagenet_225
python -m kernsym_jax.train --config=configs/imagenet_resnet18_225.py --workdir=runs/imagenet_224 \
    --config.data.crop_size=224

Not run here: neither accelerators nor the images were at hand. 112,590 steps of 1024 images each.
Shows what even padding alone does to the symmetry of strided layers and to the accuracy.
"""

from kernsym_jax.training import default


def get_config():
    config = default()
    config.epochs = 90.0
    config.batch_size = 1024
    config.eval_batch_size = 1024
    config.model.name = "resnet18"
    config.model.dtype = "bfloat16"
    config.data.source = "tfds:imagenet2012"
    config.data.streaming = True
    config.data.crop_size = 225
    config.data.flip = "horizontal"
    config.data.mean = (0.485, 0.456, 0.406)
    config.data.std = (0.229, 0.224, 0.225)
    config.optimizer.learning_rate = 0.4
    config.optimizer.weight_decay = 1e-4
    config.optimizer.warmup_epochs = 5.0
    config.log_every = 100
    return config
