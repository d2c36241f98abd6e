"""What a sweep costs beyond its training: our trials against a naive use of Ray Tune, on one cluster."""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from epochlens import config
from epochlens.lazy import LazyModule
from epochlens.learn import data, models
from epochlens.record import files
from epochlens.sweep import cluster, driver, plan
from epochlens.sweep.bench.timing import Comparison, largest_difference

if TYPE_CHECKING:
    import ray
    import torch
    from ray import tune
    from torch import Tensor
else:
    ray, torch, tune = LazyModule("ray"), LazyModule("torch"), LazyModule("ray.tune")

EPOCHS = 2


def comparisons(quick: bool) -> Iterator[Comparison | str]:
    """Runs of `small` on digits, two epochs each, wall-clock, Ray already started for both."""
    runs = 8 if quick else 40
    folder = Path(tempfile.mkdtemp(prefix="epochlens-bench-"))
    sweep = config.Sweep(
        name="ours",
        models=("small",),
        lrs=(0.01,),
        seeds=tuple(range(runs)),
        epochs=EPOCHS,
        results_dir=str(folder),
        dashboard=False,
    )
    told: list[tuple[np.ndarray, str]] = []
    with cluster.ray_cluster(sweep):
        yield Comparison(
            "overhead",
            f"{runs} digits runs through Tune",
            "naive Ray Tune",
            lambda: told.append(our_sweep(sweep)) or told[-1][0],
            lambda: naive_sweep(sweep, folder),
            largest_difference,
            1e-6,
            10.0,
            clock=time.perf_counter,
            repeats=1,
        )
        yield told[-1][1]


def our_sweep(sweep: config.Sweep) -> tuple[np.ndarray, str]:
    """Trains the sweep; returns the final accuracies, and in words what it cost beyond the training."""
    facts = config.check(sweep)
    folder = plan.sweep_folder(sweep)
    runs = plan.expand(sweep, facts)
    started = time.time()
    quiet = Console(file=io.StringIO())
    driver.train_missing(sweep, folder, plan.look_up(folder, runs), facts, quiet, lambda: None)
    seconds = time.time() - started
    folders = [plan.run_folder(folder, run.run_id) for run in runs]
    begun = min((place / "probe.npz").stat().st_mtime for place in folders) - started
    records = [files.read_json(place / "run.json") or {} for place in folders]
    compute = sum(record["seconds"] for record in records)
    slots = ray.cluster_resources()["CPU"] / sweep.cpus_per_trial
    said = (
        f"{(seconds * slots - compute) / len(runs):.2f} s per trial beyond its compute, "
        f"{begun * slots / len(runs):.2f} s of it the start of {slots:g} workers, once ({begun:.1f} s), and "
        f"{((seconds - begun) * slots - compute) / len(runs):.2f} s come with every trial; "
        f"{compute / (slots * seconds):.0%} of the slots' time is compute ({seconds:.1f} s)"
    )
    return np.array([record["final_accuracy"] for record in records]), said


def naive_sweep(sweep: config.Sweep, folder: Path) -> np.ndarray:
    """The same trainings as a plain function trainable: a new process, DataLoader and torch.save."""
    tuner = tune.Tuner(
        tune.with_resources(naive_trial, {"cpu": 1}),
        param_space={"seed": tune.grid_search(list(sweep.seeds)), "lr": sweep.lrs[0]},
        run_config=tune.RunConfig(name="naive", storage_path=str(folder), verbose=0),
    )
    results = tuner.fit()
    found = [results[n] for n in range(len(results))]
    accuracies = {dict(r.config or {})["seed"]: dict(r.metrics or {})["accuracy"] for r in found}
    return np.array([accuracies[seed] for seed in sweep.seeds])


def naive_trial(settings: Mapping[str, Any]) -> None:
    """A trial as a tutorial would write it."""
    torch.set_num_threads(1)
    torch.manual_seed(settings["seed"])
    train, test = (torch.utils.data.TensorDataset(*pair) for pair in digits_tensors())
    model = models.build(models.model_factory("small"), (1, 8, 8), 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings["lr"])
    probe = test[:32]
    for epoch in range(1, EPOCHS + 1):
        for x, y in torch.utils.data.DataLoader(train, 128, shuffle=True):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        with torch.no_grad():
            loader = torch.utils.data.DataLoader(test, 128)
            right = sum((model(x).argmax(1) == y).sum().item() for x, y in loader)
        maps = naive_maps(model, *probe)
        torch.save(maps, Path(tempfile.gettempdir()) / f"naive-{settings['seed']}-{epoch}.pt")
        tune.report({"accuracy": right / len(test), "epoch": epoch})


def naive_maps(model: torch.nn.Module, images: Tensor, labels: Tensor) -> list[Tensor]:
    """Saliency and 20-step integrated gradients, one step at a time."""
    maps = []
    for alphas in ([1.0], [(k + 0.5) / 20 for k in range(20)]):
        total = torch.zeros_like(images)
        for alpha in alphas:
            x = (alpha * images).requires_grad_()
            score = model(x).gather(1, labels[:, None]).sum()
            total += torch.autograd.grad(score, x)[0]
        maps.append(total / len(alphas))
    return maps


def digits_tensors() -> list[tuple[Tensor, Tensor]]:
    """The embedded digits: training and test split."""
    splits = data.load("digits", range(10), "unused")
    x_train, y_train, x_test, y_test = (torch.from_numpy(np.array(array)) for array in splits)
    return [(x_train, y_train), (x_test, y_test)]
