"""ResNet-50 on ImageNet in bf16, for several accelerators.

kernsym-train --prepare --config=configs/imagenet_resnet50.py
python -m kernsym_jax.train --config=configs/imagenet_resnet50.py --workdir=runs/imagenet_resnet50

Not run here: neither accelerators nor the images were at hand. 112,590 steps of 1024 images.
Published for the network: 76.16 % (adobe/antialiased-cnns, its baseline). From a folder of class
folders, train and val, instead of TFDS: --config.data.source=folder:<dir>. Where decoding is too
slow for the devices, more processes do it: --config.data.workers=16. Shows padding that is uneven
in all five strided places at 224 pixels; at 225 (--config.data.crop_size=225) in none.
"""

from kernsym_jax.training import default


def get_config():
    config = default()
    config.epochs = 90.0
    config.batch_size = 1024
    config.eval_batch_size = 1024
    config.model.name = "resnet50"
    config.model.dtype = "bfloat16"
    config.data.source = "tfds:imagenet2012"
    config.data.streaming = True
    config.data.crop_size = 224
    config.data.flip = "horizontal"
    config.data.mean = (0.485, 0.456, 0.406)
    config.data.std = (0.229, 0.224, 0.225)
    config.optimizer.learning_rate = 0.4
    config.optimizer.weight_decay = 1e-4
    config.optimizer.warmup_epochs = 5.0
    config.label_smoothing = 0.1
    config.log_every = 100
    return config
