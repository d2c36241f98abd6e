"""The figures by name: each is a pure function from the analysis tables to a matplotlib Figure."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from matplotlib.figure import Figure

from epochlens.show import changes, curves, effects, forest, nulls, quality, style, timing, tradeoffs
from epochlens.show.frames import Tables
from epochlens.show.style import notice, save

__all__ = ["FIGURES", "Drawing", "draw", "drawable", "notice", "save"]


def always(tables: Tables) -> bool:
    """True: most figures say themselves what they lack."""
    return True


class Drawing(NamedTuple):
    """A figure's function, its title, a caption that says what it shows and how to read it, and when to.

    `is_shown` is false of tables from sweeps in which nobody asked for what the figure shows.
    """

    draw: Callable[[Tables], Figure]
    title: str
    caption: str
    is_shown: Callable[[Tables], bool] = always


CURVES = (
    "Thin lines are seeds (each the mean over its probe images), the thick line is their mean, and the "
    "band is the 95 % t interval over seeds; there is none with a single seed, nor with more than "
    f"{style.MOST_BANDS} methods. A t interval may reach past 1, where the axis ends. Maps for which the "
    "similarity is undefined (all zero or constant) are left out and counted in the panel's title. "
)
EFFECT = (
    "Every point is one run: its cosine to the previous epoch, averaged over the epochs from 2 on and "
    "over the probe images. Lines join runs of the same seed; the outlined marker is the mean over "
    "seeds with its 95 % t interval. Lines that run in parallel are a difference every seed agrees on; "
    "the paired tests are in the comparisons table. The vertical axis does not start at zero. "
)
BAND = (
    "Lines are means over n seeds (the panel's title says how many), each seed the mean over its probe "
    "images; bands are 95 % t intervals over seeds, and with a single seed there are none. "
)
CONTROLS = (
    "Two controls know nothing of the network: the input's edges (Sobel) and random values; where a "
    "method is not better than they are, the metric says nothing for it. "
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
        "threshold. Dots are seeds, the large marker their Kaplan-Meier median; black bars mark that of "
        "the epoch at which accuracy settled. Open markers and dotted bars, with an arrow, had not settled "
        "when the training ended: their epoch is a lower bound. No interval is drawn. "
        "Coloured markers right of the black bar: explanations go on changing after accuracy has "
        "settled.",
    ),
    "survival": Drawing(
        timing.survival,
        "Share of images whose maps have not settled yet",
        "Kaplan-Meier curves over all images of all seeds: the share whose map has not yet come to stay "
        "close to its final one (raw cosine at or above the threshold at every later epoch). Images that had "
        "not settled when training ended are censored: they count as unsettled to the end, a tick marks "
        "them and the panel says how many. Markers near one half are the medians, the thick lines their "
        "95 % intervals, by resampling seeds and then images; an arrow is an interval without an end, and "
        "where the marker is missing more than half of the images never settled. The black steps are the "
        "share of seeds whose accuracy had not settled by the same rule. A coloured curve right of the "
        "black one: maps settle after accuracy.",
    ),
    "lag": Drawing(
        timing.lag,
        "Do maps settle before or after accuracy?",
        "Epochs by which a run's maps settle after its accuracy, paired by seed; a run's maps settle when "
        "their mean similarity over images does: left by the raw cosine, right by the calibrated one (0: "
        "another image of the class), and counts of censored seeds in that order. Filled markers are "
        "medians over n seeds with an interval "
        "by the sign test, which needs six seeds for 95 %; with fewer, and none censored, the open marker "
        "is the mean with its 95 % t interval (dashed). Seeds are censored where maps or accuracy had not "
        "settled at the end: a thick pale bar then spans the medians that are possible, and an arrow is a "
        "side without a bound.",
    ),
    "nulls": Drawing(
        nulls.nulls,
        "How far above meaninglessness",
        "Cosine similarity of a map to the same image's at the previous and at the final epoch, over what it "
        "is for maps that share less: with the same image's map from another seed, with the map of another "
        "image of the class at the same epoch, with the untrained network's map, with the input's edges "
        "(Sobel), with random values and, where the method is stochastic, with a second draw (the method's "
        "noise floor, which similarity can hardly exceed). "
        + BAND
        + "Between seeds the interval comes from resampling seeds. A curve that is no higher than its nulls "
        "is no sign that the map depends on what this training learned.",
    ),
    "calibrated": Drawing(
        nulls.calibrated,
        "Similarity between another image and identity",
        "Cosine similarity on the scale on which 0 (dotted) is the map of another image of the same class "
        "and 1 (dotted) is the same map. Thin lines are seeds, the thick line is their mean and the band the "
        "95 % t interval over seeds; with a single seed there is no band. Images alone in their class have "
        "no null and are left out. Where maps of a class are all alike, the scale is stretched and curves "
        "are rough.",
    ),
    "agreement": Drawing(
        nulls.agreement,
        "Agreement between seeds: the ceiling",
        "Cosine similarity of the maps of one image from two seeds at the same epoch (dark), averaged "
        "over all pairs of the n seeds and over images; its band is a 95 % interval by resampling seeds, "
        "not pairs, and takes three seeds. Coloured: similarity to the run's own final maps, with the 95 "
        "% t interval over seeds. Where the coloured curve is above the dark one, a map is closer to "
        "where its own training will end than trainings are to each other.",
    ),
    "conditioned": Drawing(
        changes.conditioned,
        "Do maps move because predictions do?",
        "Cosine similarity to the previous epoch of images that were right at every trained epoch, at some "
        "of them, that kept their prediction (right or wrong) between the two epochs, that changed it, and "
        "of all. "
        + BAND
        + "No band rests on fewer than four seeds. Below: coverage, the share of images that meet the "
        "condition. Only the images that are always "
        "right are the same at every epoch; where the coverage of flipped ones is small, their curve rests "
        "on few images. If the curves of kept and flipped predictions agree, maps move for other reasons.",
    ),
    "drift": Drawing(
        changes.drift,
        "Similarity lost per step taken",
        "1 minus the cosine to the previous epoch, divided by the relative change of the weights (top) "
        "and by the change of the outputs on the probe images (middle) between the same two epochs; "
        "below, the relative change of the weights itself. Logarithmic axes. Lines are geometric means "
        "over n seeds, bands 95 % t intervals of the logarithms; steps of zero size are undefined and "
        "left out. Small steps look like stability: a falling curve below and flat ones above mean that "
        "maps hardly became steadier, training only moved less.",
    ),
    "properties": Drawing(
        changes.properties,
        "Mass, entropy and concentration of the maps",
        "The sum of a map's absolute values (top, logarithmic: geometric mean and interval of the "
        "logarithms), the entropy of their shares (1: all pixels alike, 0: one pixel) and their Gini "
        "index (0: all alike, towards 1: few pixels hold everything). "
        + BAND
        + "A growing mass with steady entropy and Gini index: maps only grow.",
    ),
    "effect_sizes": Drawing(
        forest.effect_sizes,
        "All paired comparisons",
        "Rank-biserial correlation of the differences between two conditions, paired by seed: 1 if a is "
        "larger than b in every seed, -1 if smaller in every one. Lines are 95 % score intervals; n is "
        "the number of pairs, p the Wilcoxon signed-rank p after Holm's correction. Filled markers hold "
        "(adjusted p < 0.05). Censored: pairs of which a side had not settled when the training ended. It "
        "counts as the later side, by more than any difference seen; where neither had, the pair is left out "
        "of n.",
    ),
    "quality_bars": Drawing(
        quality.quality_bars,
        "How good the maps of each method are",
        "Every quality metric at the last epoch at which it was measured. Dots are seeds, each the mean over "
        "the images where the metric is defined; the outlined marker is their mean with its 95 % t interval "
        "over the n seeds that the headlines tell, an arrow what reaches past the axis. Values "
        "that span more than two decades have a logarithmic axis and, as that has no zero, no bars. "
        + CONTROLS
        + "Undefined values are left out and counted above each panel; what makes them undefined stands with "
        "the tables. Relative input stability loses an image as soon as one perturbation changes its "
        "prediction; 'kept' uses only the perturbations that keep it.",
        quality.is_measured,
    ),
    "quality_vs_epoch": Drawing(
        quality.quality_vs_epoch,
        "Quality of the maps over training",
        "Quality metrics by epoch; epoch 0 is the untrained network. "
        + BAND
        + f"With more than {style.MOST_BANDS} methods the bands are left out, as they would hide each "
        "other. Values that span more than two decades have a logarithmic axis; a band that reaches zero "
        "ends there at the axis. Undefined values are left out. " + CONTROLS,
        quality.is_followed,
    ),
    "deletion_insertion": Drawing(
        quality.deletion_insertion,
        "Deletion and insertion curves",
        "Softmax probability of the target when pixels are removed (left) or inserted (right), those with "
        "the largest attribution first, at the last epoch. "
        + BAND
        + "The numbers are the areas under the mean curves: a good map makes the probability fall early "
        "when its pixels go, and rise early when they come. The vertical axis need not start at zero. "
        + CONTROLS
        + "They are dashed.",
        quality.has_curves,
    ),
    "quality_tradeoffs": Drawing(
        tradeoffs.quality_tradeoffs,
        "Faithful, stable and sparse: the trade-offs",
        "Faithfulness correlation against relative input stability (of the perturbations that keep the "
        "prediction) at the last epoch: means over n seeds with 95 % t intervals. The lower right is better "
        "in both; a marker on the lower edge has a stability of 0. Ringed methods are not dominated: no "
        "other method is at least as good in both and better in one. At most "
        f"{tradeoffs.MOST_NAMES} of them are named, the ends of the front among them. Larger markers are "
        "sparser maps. Methods of which one of the two is undefined are left out, and controls take no part "
        "in the front. " + CONTROLS,
        tradeoffs.has_trade_offs,
    ),
}


def drawable(tables: Tables) -> list[str]:
    """The names of the figures to draw of these tables."""
    return [name for name, drawing in FIGURES.items() if drawing.is_shown(tables)]


def draw(name: str, tables: Tables) -> Figure:
    """The named figure of the tables; an unknown name lists those there are."""
    if name not in FIGURES:
        raise KeyError(f"no figure {name!r}; there are {', '.join(FIGURES)}")
    return FIGURES[name].draw(tables)
