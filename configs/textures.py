"""A small network on generated textures whose distribution has a chosen symmetry group.

python -m kernsym_jax.train --config=configs/textures.py --workdir=runs/textures_fliplr
python -m kernsym_jax.train --config=configs/textures.py --workdir=runs/textures_none \
    --config.data.source=textures:group=none,size=16,channels=1

41 s on two cores of a crowded server, 22 s of processor time, 99.9 % test accuracy. The groups are
none, fliplr, flipud, rot180 and d4; their textures are the same but for a random element of the
group per image. For the question whether a symmetry of the data becomes one of the mean kernels:
in single runs of this size layers differ more than groups do, so ask it of several seeds
(--config.seeds=8, or configs/studies/emergence.py).
"""

from kernsym_jax.training import default


def get_config():
    config = default()
    config.epochs = 10.0
    config.batch_size = 100
    config.eval_batch_size = 500
    config.model.name = "small_cnn"
    config.model.width = 16
    config.model.depth = 5
    config.model.strided = (2, 4)
    config.data.source = "textures:group=fliplr,size=16,channels=1"
    config.optimizer.weight_decay = 5e-3
    return config
