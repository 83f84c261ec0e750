"""E8: when do mean kernels become symmetric, and what in the data makes them so?

python -m kernsym_jax.study --study=configs/studies/emergence.py --workdir=runs/emergence

The same network on textures without any symmetry, with a mirror symmetry either way, with all of
D4, turned by 90°, with random labels, on noise, and with flips or circular padding; each from its
initialisation on. ``smoke`` takes five minutes on two cores and ``cpu`` about twenty-five; ``full``
has larger images and more of them, and wants an accelerator.
"""

import dataclasses

from kernsym_jax import studies, training
from kernsym_jax.studies import Claim, Contrast, Measure, Study
from kernsym_jax.studies import measures as m

CLAIMS = {
    "E8-start": Claim("At initialisation the score is that of random kernels.", of="E8"),
    "E8-rise": Claim("Training on textures raises the score.", of="E8"),
    "E8-labels": Claim("Labels that mean something raise it more than random ones.", of="E8"),
    "E8-noise": Claim("Images with structure raise it more than noise.", of="E8"),
    "E8-group": Claim(
        "A mirror symmetry of the data makes kernels symmetric under that mirror.", of="E8"
    ),
    "E8-d4": Claim("Data with all symmetries of the square raise the score.", of="E8"),
    "E8-flips": Claim("Flips as augmentation do what the data's own symmetry does.", of="E8"),
    "E8-turn": Claim("Turning the data by 90° exchanges the two mirrors.", of="E8"),
    "E8-padding": Claim("Circular padding, which has no border, raises the score.", of="E8"),
}


def measures() -> dict[str, Measure]:
    roles = m.ORDINARY
    return {
        "accuracy": m.accuracy(),
        "train_accuracy": Measure(
            "accuracy on what was trained on, towards the end",
            lambda run: run.summary["train_accuracy"],
        ),
        "start_over_chance": m.over_chance(roles, 0, "mean score − chance, at initialisation"),
        "score_start": m.at_step("score", roles, 0, "mean score at initialisation"),
        "score": m.mean_over("score", roles, "mean score at the end"),
        "d_fliplr": m.mean_over("d_fliplr", roles, "mean distance to the mirror image"),
        "d_flipud": m.mean_over("d_flipud", roles, "mean distance to the upside-down image"),
        "ud_over_lr": m.mean_over(m.flipud_over_fliplr, roles, "d_flipud − d_fliplr"),
        "score_centered": m.mean_over("score_centered", roles, "mean score without the offset"),
        "dc_share": m.mean_over("dc_share", roles, "share of the offset"),
    }


def more(claim: str, left: str, right: str, measure: str, smallest: float) -> Contrast:
    """Tests whether a variant has more of a measure than another."""
    terms = ((1.0, left, measure), (-1.0, right, measure))
    return Contrast(claim, f"{measure}, {left} − {right}", terms, "above", smallest)


CONTRASTS = {
    "start": Contrast(
        "E8-start",
        "score − chance at initialisation",
        ((1.0, "none", "start_over_chance"),),
        "zero",
        0.08,
    ),
    "rise": Contrast(
        "E8-rise",
        "score at the end − at initialisation",
        ((1.0, "none", "score"), (-1.0, "none", "score_start")),
        "above",
        0.03,
    ),
    "labels": more("E8-labels", "none", "random_labels", "score", 0.03),
    "structure": more("E8-noise", "none", "noise", "score", 0.03),
    "mirror": more("E8-group", "fliplr", "none", "ud_over_lr", 0.03),
    "upside_down": more("E8-group", "none", "flipud", "ud_over_lr", 0.03),
    "square": more("E8-d4", "d4", "none", "score", 0.03),
    "flip_horizontal": more("E8-flips", "flip_horizontal", "none", "ud_over_lr", 0.03),
    "flip_vertical": more("E8-flips", "none", "flip_vertical", "ud_over_lr", 0.03),
    "turned": more("E8-turn", "fliplr", "fliplr_turned", "ud_over_lr", 0.03),
    "circular": more("E8-padding", "circular", "none", "score", 0.03),
}

CONFOUNDS = {
    "A network that has learnt less may be less symmetric: its accuracy. Random labels and noise "
    "can only be learnt by heart.": ("accuracy", "train_accuracy"),
    "A shared offset of the cells alone gives a score near 1: the offset's share, and the score "
    "without it.": ("dc_share", "score_centered"),
}


def variants(settings: str) -> dict[str, dict[str, object]]:
    """The variants, given the settings that all textures and the noise share."""

    def textures(group: str) -> str:
        return f"textures:group={group},{settings}"

    return {
        "none": {"data.source": textures("none")},
        "fliplr": {"data.source": textures("fliplr")},
        "flipud": {"data.source": textures("flipud")},
        "d4": {"data.source": textures("d4")},
        "fliplr_turned": {"data.source": textures("fliplr"), "data.rotate": 90},
        "random_labels": {"data.source": textures("none"), "data.random_labels": True},
        "noise": {"data.source": f"noise:{settings}"},
        "flip_horizontal": {"data.source": textures("none"), "data.flip": "horizontal"},
        "flip_vertical": {"data.source": textures("none"), "data.flip": "vertical"},
        "circular": {"data.source": textures("none"), "model.padding": "circular"},
    }


def study(size: str, settings: str, seeds: int, epochs: float, width: int, log_every: int) -> Study:
    """The study on textures and noise of one size."""
    base = training.default()
    base.epochs, base.batch_size = epochs, 64
    base.model.update({"name": "small_cnn", "width": width, "depth": 5, "strided": (3,)})
    base.optimizer.weight_decay = 5e-3
    base.log_every, base.eval_every_epochs, base.checkpoint_every_epochs = log_every, epochs, epochs
    return Study(
        name="emergence",
        size=size,
        title="When do mean kernels become symmetric, and why?",
        data="generated textures of a chosen group of symmetries, and noise",
        base=base,
        variants=variants(settings),
        seeds=tuple(range(seeds)),
        measures=measures(),
        claims=CLAIMS,
        contrasts=CONTRASTS,
        confounds=CONFOUNDS,
        layer_figures=("score", "d_fliplr", "d_flipud", "E"),
        roles=m.ORDINARY,
        trajectories=("score", "d_fliplr", "d_flipud"),
    )


def smoke() -> Study:
    small = study("smoke", "size=13,channels=1,classes=6,n=1536,test=384", 5, 20.0, 16, 48)
    return dataclasses.replace(small, cost=(6.0, "as on two cores of a shared x86 server"))


def cpu() -> Study:
    small = study("cpu", "size=17,channels=1,n=6400,test=1000", 5, 20.0, 16, 200)
    return dataclasses.replace(small, cost=(27.0, "as on two cores of a shared x86 server"))


def full() -> Study:
    return study("full", "size=33,channels=3,n=50000,test=10000", 8, 40.0, 32, 400)


def get_study(size: str) -> Study:
    return studies.pick_size(size, {"smoke": smoke, "cpu": cpu, "full": full})
