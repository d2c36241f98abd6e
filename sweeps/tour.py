# %% [markdown]
# # A tour of EpochLens in a minute
# Cells run top to bottom: `python -m sweeps.tour`, or open this file as a notebook with jupytext.
# It trains a few small networks on the embedded digits and looks at their explanations; it writes only into a
# temporary folder.

# %%
import tempfile
from pathlib import Path

import torch

import epochlens
from epochlens.commands import grid
from epochlens.learn import data, models, training

folder = Path(tempfile.mkdtemp(prefix="epochlens-tour-"))

# %% [markdown]
# ## Explain any network
# `attribute` takes a model, images [N,C,H,W] and target classes, and gives maps of the same shape.

# %%
splits = training.as_tensors(data.load("digits", range(10), "unused"))
trajectory = training.begin(models.model_factory("gapnet"), (1, 8, 8), 10, seed=0, learning_rate=0.01)
for epoch in training.train(trajectory, splits, epochs=8, batch_size=128):
    print(f"epoch {epoch.epoch}: accuracy {epoch.accuracy:.3f}")
images, labels = splits.x_test[:16], splits.y_test[:16]
maps = {
    method: epochlens.attribute(trajectory.model, images, labels, method)
    for method in ("saliency", "integrated_gradients", "gradcam", "random")
}

# %% [markdown]
# ## How good are the maps?
# Deletion blackens the pixels that a map ranks highest: a good map makes the probability fall fast. The
# control `random` shows what that number is worth.

# %%
for method, of_method in maps.items():
    deletion = epochlens.evaluate(trajectory.model, images, labels, of_method, "deletion")
    print(f"{method}: area under the deletion curve {deletion.nanmean():.3f}")

# %% [markdown]
# ## How alike are they?
# Undefined similarities (of a map that is zero everywhere) are NaN, never 0.

# %%
flat = {method: of_method.flatten(1).numpy() for method, of_method in maps.items()}
similarity = epochlens.similarity.cosine(flat["saliency"], flat["integrated_gradients"])
print(f"saliency and integrated gradients: mean cosine {similarity.mean():.2f}")

# %% [markdown]
# ## When do they settle?
# A sweep records the maps after every epoch. This one: two learning rates, three seeds, 12 epochs.

# %%
settings = ["--name", "tour", "--models", "small", "--lrs", "0.003", "0.03", "--seeds", "0", "1", "2"]
places = ["--results-dir", str(folder / "results"), "--plots-dir", str(folder / "plots"), "--no-dashboard"]
grid([*settings, "--epochs", "12", *places])

# %% [markdown]
# ## The recorded maps
# One run's maps as an array, [epochs, methods, images, C, H, W].

# %%
run = sorted((folder / "results" / "tour" / "runs").iterdir())[0]
recorded = epochlens.load(run)
print(run.name, recorded.attributions.shape, recorded.methods.tolist())
first, last = (torch.from_numpy(recorded.attributions[e, 0].copy()).flatten(1) for e in (0, -1))
print("cosine of untrained and final saliency:", epochlens.similarity.cosine(first, last).mean().round(2))
print("look at", folder / "plots" / "tour" / "report.html")
