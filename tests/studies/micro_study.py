"""A study small enough for a test: two variants, two seeds, four steps each."""

from kernsym_jax import studies, training
from kernsym_jax.studies import Claim, Contrast, Correlation, Study
from kernsym_jax.studies import measures as m


def get_study(size):
    return studies.pick_size(size, {"smoke": lambda: study((0, 1)), "cpu": lambda: study((0,))})


def study(seeds):
    base = training.default()
    base.batch_size, base.epochs = 64, 4 / 22
    base.model.update({"width": 4, "depth": 2, "strided": (2,)})
    base.log_every, base.consistency.images = 2, 16
    base.eval_every_epochs = base.checkpoint_every_epochs = 2 / 22
    terms = ((1.0, "even", "E_strided"), (-1.0, "odd", "E_strided"))
    return Study(
        name="micro",
        size="smoke" if len(seeds) > 1 else "cpu",
        title="Is <this> a study?",
        data="digits",
        base=base,
        variants={"even": {}, "odd": {"data.image_size": 9}},
        seeds=seeds,
        measures={
            "accuracy": m.accuracy(),
            "E_strided": m.mean_over("E", ("strided",), "odd part"),
            "over_chance_start": m.over_chance(m.ORDINARY, 0, "score − chance at the start"),
            "score": m.at_step("score", m.ORDINARY, -1, "score at the end"),
        },
        claims={"E4": Claim("Uneven padding skews.", of="E4"), "E6": Claim("It helps.", of="E6")},
        contrasts={"odd_part": Contrast("E4", "odd part", terms, "above", 0.01)},
        correlations={
            "helps": Correlation("E6", "score and accuracy", "score", "accuracy", "above", 0.1)
        },
        confounds={"Accuracy.": ("accuracy",)},
        trajectories=("score",),
    )
