"""One model for one loss: train, time the loss apart from the network, score the held-out part."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ..maps import contour
from ..ops.distance_transform_edt import distance_transform_edt
from .net import UNet
from .registry import Entry
from .tasks import STEPS_PER_EPOCH, Task

LEARNING_RATE = 2e-2  # at 1e-2 and below, the scores of three seeds lie further apart
REPORT_EVERY = 5  # steps


@dataclass(frozen=True)
class Score:
    """Outcome of one training; times are wall seconds of one process."""

    dice: float
    sensitivity: float
    specificity: float
    hausdorff95: float | None  # pixels; None where nothing was found
    loss_ms: float  # the loss's forward and backward, median of the steps
    step_ms: float  # a whole step, median
    loss_seconds: float  # the loss's forward and backward, sum of the steps
    train_seconds: float  # all steps
    steps: int
    last_loss: float
    prediction: npt.NDArray[np.bool_]  # (K, H, W)

    @property
    def note(self) -> str:
        return "" if self.prediction.any() else "all background"


def hausdorff95(predicted: torch.Tensor, truth: torch.Tensor) -> float | None:
    """95th percentile of the distances between the contours of two masks ``(K, 1, H, W)``, in pixels.

    Of each image the larger one of both directions, averaged over the images that have both contours.
    """
    contours = [contour(mask, 2) for mask in (predicted, truth)]
    distances = [distance_transform_edt(~c, spatial_dims=2) for c in contours]
    found = [
        max(float(d[k][c[k]].quantile(0.95)) for c, d in zip(contours, reversed(distances)))
        for k in range(len(truth))
        if all(c[k].any() for c in contours)
    ]
    return statistics.fmean(found) if found else None


def train(
    entry: Entry, task: Task, *, epochs: int, seed: int, progress: Callable[[int], None] = lambda steps: None
) -> Score:
    """Train from ``seed``: every loss starts from the same weights and sees the same crops in the same order."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    net, criterion = UNet(), entry.build()
    groups = [list(net.parameters()), list(criterion.parameters())]  # a loss may learn too
    optimizer = torch.optim.Adam([{"params": group} for group in groups if group])
    steps = epochs * STEPS_PER_EPOCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)

    loss_seconds: list[float] = []
    step_seconds: list[float] = []
    value = math.nan
    net.train()
    for step in range(steps):
        began = time.perf_counter()
        image, mask = task.batch(generator)
        optimizer.zero_grad()
        logits = net(image)
        at_loss = logits.detach().requires_grad_()  # cuts the graph, so that the clock sees the loss alone

        start = time.perf_counter()
        loss = criterion(at_loss, mask)
        loss.backward()
        loss_seconds.append(time.perf_counter() - start)

        value = loss.item()
        if not math.isfinite(value):
            raise FloatingPointError(f"the loss is {value} at step {step + 1} of {steps}")
        logits.backward(at_loss.grad)
        optimizer.step()
        schedule.step()
        step_seconds.append(time.perf_counter() - began)
        if (step + 1) % REPORT_EVERY == 0:
            progress(REPORT_EVERY)

    net.eval()
    with torch.inference_mode():
        logits = torch.cat([net(image) for image in task.test_image.split(8)])
    if not logits.isfinite().all():
        raise FloatingPointError("the trained network predicts values that are not finite")
    predicted, truth = logits > 0, task.test_mask  # sigmoid(0) = 0.5

    def count(mask: torch.Tensor) -> int:
        return int(mask.sum())

    tp, fp = count(predicted & truth), count(predicted & ~truth)
    fn, tn = count(~predicted & truth), count(~predicted & ~truth)
    return Score(
        dice=2 * tp / (2 * tp + fp + fn),
        sensitivity=tp / (tp + fn),
        specificity=tn / (tn + fp),
        hausdorff95=hausdorff95(predicted, truth),
        loss_ms=1e3 * statistics.median(loss_seconds),
        step_ms=1e3 * statistics.median(step_seconds),
        loss_seconds=sum(loss_seconds),
        train_seconds=sum(step_seconds),
        steps=steps,
        last_loss=value,
        prediction=predicted[:, 0].numpy(),
    )
