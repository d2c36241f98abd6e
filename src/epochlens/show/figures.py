"""The figures by name: each is a pure function from the analysis tables to a matplotlib Figure."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from matplotlib.figure import Figure

from epochlens.show import curves, effects
from epochlens.show.frames import Tables
from epochlens.show.style import notice, save

__all__ = ["FIGURES", "Drawing", "draw", "notice", "save"]


class Drawing(NamedTuple):
    """A figure's function, its title, and a caption that says what it shows and how to read it."""

    draw: Callable[[Tables], Figure]
    title: str
    caption: str


CURVES = (
    "Thin lines are seeds (each the mean over its probe images), the thick line is their mean, and the "
    "band is the 95 % t interval over seeds; with a single seed there is no band. A t interval may reach "
    "past 1, where the axis ends. Maps for which the similarity is undefined (all zero or constant) are "
    "left out and counted in the panel's title. "
)
EFFECT = (
    "Every point is one run: its cosine to the previous epoch, averaged over the epochs from 2 on and "
    "over the probe images. Lines join runs of the same seed; the outlined marker is the mean over "
    "seeds with its 95 % t interval. Lines that run in parallel are a difference every seed agrees on; "
    "the paired tests are in the comparisons table. The vertical axis does not start at zero. "
)

FIGURES: dict[str, Drawing] = {
    "cosine_vs_epoch": Drawing(
        partial(curves.similarity, metric="cosine", reference="previous"),
        "Similarity of maps to the previous epoch",
        "Cosine similarity between the map of an image at each epoch and at the epoch before. "
        + CURVES
        + "A curve near 1 means that another epoch hardly changes the explanation.",
    ),
    "rank_vs_epoch": Drawing(
        partial(curves.similarity, metric="spearman_abs", reference="previous"),
        "Rank correlation of maps with the previous epoch",
        "Spearman correlation between the absolute values of a map at each epoch and at the epoch "
        "before: whether the order of important pixels is kept, whatever their sign and size. " + CURVES,
    ),
    "cosine_to_final": Drawing(
        partial(curves.similarity, metric="cosine", reference="final"),
        "Similarity of maps to the final ones",
        "Cosine similarity between the map at each epoch and the map after the last epoch; epoch 0 is "
        "the untrained network and the last epoch is 1 by definition. "
        + CURVES
        + "Where a curve starts well above 0, part of the final map is there before any training.",
    ),
    "accuracy_and_convergence": Drawing(
        curves.accuracy_and_convergence,
        "Accuracy and convergence of maps",
        "Test accuracy (black) and cosine similarity to the final maps (colours), on one axis because "
        "both are fractions of a best value of 1. "
        + CURVES
        + "A coloured curve that still rises where the black one is flat: explanations change after "
        "accuracy settled.",
    ),
    "accuracy_vs_stability": Drawing(
        curves.accuracy_against_stability,
        "Accuracy against stability, epoch by epoch",
        "Test accuracy against cosine similarity to the previous epoch. Pale points are single runs at "
        "one epoch; outlined points are means over seeds, joined in the order of epochs, their colour "
        "telling the epoch (on a logarithmic scale) and their outline and shape the method. No "
        "interval is drawn. Points stacked on a vertical line: maps go on settling at an unchanged "
        "accuracy.",
    ),
    "dataset_effect": Drawing(
        partial(effects.effect, factor="dataset"),
        "Effect of the dataset on stability",
        EFFECT + "The same seed on two datasets shares its random stream, not its images.",
    ),
    "model_effect": Drawing(
        partial(effects.effect, factor="model"),
        "Effect of the model on stability",
        EFFECT,
    ),
    "learning_rate_effect": Drawing(
        partial(effects.effect, factor="learning_rate"),
        "Effect of the learning rate on stability",
        EFFECT,
    ),
    "variance_bars": Drawing(
        effects.variance_bars,
        "Temporal variance of the maps",
        "Variance of each pixel of a map over the trained epochs, averaged over pixels and images: of "
        "the maps as they are (left, which grows with the size of gradients) and after scaling each "
        "map to unit norm (right, which compares across models and methods). Dots are seeds, the "
        "outlined marker is their mean with its 95 % t interval. Where raw values span more than two "
        "decades the axis is logarithmic and, having no zero, has no bars. Smaller means steadier.",
    ),
    "final_accuracy_vs_final_stability": Drawing(
        effects.final_points,
        "Final accuracy against final stability",
        "One point per run and method: test accuracy after the last epoch against the cosine "
        "similarity of the last two epochs' maps. Colour tells the method, shape the model and "
        "learning rate. No interval is drawn, since every run is shown. Points without a slope: being "
        "accurate says little about being stable.",
    ),
    "epoch_matrix": Drawing(
        curves.epoch_matrix,
        "Every epoch against every other",
        "Cosine similarity of the maps of two epochs, averaged over images and seeds; all panels share "
        "the colour scale, which spans the values found. A bright square at the upper right begins "
        "where maps settle; grey cells are undefined. No interval is drawn.",
    ),
    "settling": Drawing(
        effects.settling,
        "When maps settle, and when accuracy does",
        "The settling epoch is the first from which the similarity to the final maps stays above the "
        "threshold. Dots are seeds, the large marker their median; black bars mark the median epoch at "
        "which accuracy settled, dotted where it had not in most seeds. Open markers with an arrow did "
        "not settle before the training ended: their epoch is a lower bound. No interval is drawn. "
        "Coloured markers right of the black bar: explanations go on changing after accuracy has "
        "settled.",
    ),
}


def draw(name: str, tables: Tables) -> Figure:
    """The named figure of the tables; an unknown name lists those there are."""
    if name not in FIGURES:
        raise KeyError(f"no figure {name!r}; there are {', '.join(FIGURES)}")
    return FIGURES[name].draw(tables)
