"""ResNet-50 in bf16 on noise of ImageNet's size: how fast are the devices, without any input?

python -m kernsym_jax.train --config=configs/fake_benchmark.py --workdir=runs/fake_benchmark

Not run here: no accelerator was at hand. 100 steps of 256 images, which lie on the devices; the log
and summary.json tell the images per second. The input of a set that is streamed, without reading
and decoding: --config.data.streaming=True. Another network: --config.model.name=resnet18.
"""

from kernsym_jax.training import default


def get_config():
    config = default()
    config.epochs = 25.0
    config.batch_size = 256
    config.model.name = "resnet50"
    config.model.dtype = "bfloat16"
    config.data.source = "fake"
    config.data.flip = "horizontal"
    config.log_every = 20
    config.eval_every_epochs = 25.0
    config.checkpoint_every_epochs = 25.0
    return config
