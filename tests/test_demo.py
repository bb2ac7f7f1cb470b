"""The demo: a short run's files, and what it says when it cannot run. Scores are not judged here."""

from __future__ import annotations

import csv
import json
import math
import multiprocessing

import pytest
import torch

pytest.importorskip("matplotlib")

import segfuse
from segfuse import demo
from segfuse.demo import registry, tasks, train, workers
from segfuse.demo.net import UNet


class BrokenLoss(segfuse.DiceLoss):
    def forward(self, *args, **options):
        raise ValueError("broken on purpose")


class NanLoss(segfuse.DiceLoss):
    def forward(self, input, target, **options):
        return super().forward(input, target, **options) * math.nan


@pytest.fixture
def short(monkeypatch):
    """Eight steps an epoch."""
    monkeypatch.setattr(train, "STEPS_PER_EPOCH", 8)
    monkeypatch.setattr(train, "REPORT_EVERY", 1)


@pytest.fixture
def join(monkeypatch):
    """Adds a class to ``segfuse.losses``, as a later release would."""

    def add(cls):
        monkeypatch.setattr(segfuse.losses, cls.__name__, cls, raising=False)
        monkeypatch.setattr(segfuse.losses, "__all__", [*segfuse.losses.__all__, cls.__name__])

    return add


def run(*options, out):
    return demo.main(["--epochs", "1", "--workers", "1", "--out", str(out), *options])


def test_run_writes_table_csv_json_and_picture(short, tmp_path, capsys):
    assert run("--losses", "dice,focal", "--task", "nuclei,outlines", out=tmp_path) == 0
    printed = capsys.readouterr()
    for text in ("Dice", "Focal", "sensitivity", "specificity", "one seed", "held-out", "columns 0-303 train"):
        assert text in printed.out
    assert "[4/4]" in printed.err

    with (tmp_path / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["task"], row["id"]) for row in rows] == [
        ("nuclei", "dice"), ("nuclei", "focal"), ("outlines", "dice"), ("outlines", "focal"),
    ]  # fmt: skip
    for row in rows:
        assert all(0 <= float(row[name]) <= 1 for name in ("dice", "sensitivity", "specificity", "loss_share"))
        assert 0 < float(row["loss_seconds"]) < float(row["train_seconds"])

    saved = json.loads((tmp_path / "results.json").read_text())
    assert [row["call"] for row in saved["results"]] == ["DiceLoss()", "FocalLoss()"] * 2
    assert saved["settings"]["seed"] == 0
    assert saved["tasks"]["nuclei"]["test_foreground"] == pytest.approx(0.163, abs=1e-3)
    assert saved["machine"]["cpu"]
    assert saved["versions"]["torch"]

    for name in ("predictions.png", "maps.png"):
        png = (tmp_path / name).read_bytes()
        assert png.startswith(b"\x89PNG")
        assert len(png) > 20_000


@pytest.mark.slow
def test_same_seed_same_scores_in_any_process(tmp_path):
    """Two workers and one give the same bits, another seed others."""
    scores = {}
    runs = {"one": ["dice,bce"], "two": ["dice,bce", "--workers", "2"], "other": ["dice", "--seed", "1"]}
    for name, options in runs.items():
        assert run("--task", "nuclei", "--losses", *options, out=tmp_path / name) == 0
        rows = json.loads((tmp_path / name / "results.json").read_text())["results"]
        scores[name] = [(row["dice"], row["last_loss"]) for row in rows]
    assert scores["one"] == scores["two"]
    assert scores["one"][0] != scores["other"][0]


def test_a_loss_that_fails_is_reported_and_the_rest_goes_on(short, join, tmp_path, capsys):
    join(BrokenLoss)
    join(NanLoss)
    assert run("--losses", "broken,nan,dice", out=tmp_path) == 1
    printed = capsys.readouterr()
    assert "Broken: FAILED: ValueError: broken on purpose" in printed.out
    assert "Nan: FAILED: FloatingPointError: the loss is nan at step 1 of 8" in printed.out
    assert "2 of 3 trainings failed" in printed.err
    broken, nan, dice = json.loads((tmp_path / "results.json").read_text())["results"]
    assert (broken["status"], nan["status"], dice["status"]) == ("failed", "failed", "ok")
    assert "broken on purpose" in broken["traceback"]
    assert (tmp_path / "predictions.png").exists()


@pytest.mark.slow
def test_a_worker_that_dies_is_reported_and_replaced():
    jobs = [workers.Job(entry, "nuclei", 1, 0) for entry in registry.choose("dice,focal,bce")]
    outcomes = {}
    killed = []

    def progress(steps):
        if not killed:
            killed.append(multiprocessing.active_children()[0])
            killed[0].kill()

    workers.run_jobs(jobs, {}, workers=2, progress=progress, finished=outcomes.__setitem__)
    assert set(outcomes) == set(jobs)
    failed = [outcome for outcome in outcomes.values() if isinstance(outcome, workers.Failure)]
    assert [failure.reason for failure in failed] == ["its worker process was killed by signal 9 (SIGKILL)"]
    assert not multiprocessing.active_children()


def test_unknown_names_and_values(tmp_path, capsys):
    assert run("--losses", "dice,dyce", out=tmp_path) == 2
    error = capsys.readouterr().err
    assert "unknown loss: dyce" in error
    assert all(name in error for name in ("focal_tversky", "survey", "all"))
    assert run("--task", "lungs", out=tmp_path) == 2
    assert "known: nuclei, outlines, head" in capsys.readouterr().err
    assert run("--losses", ",", out=tmp_path) == 2
    assert run("--losses", "dice", out=tasks.DATA_DIR / "README.md") == 2
    assert "cannot write into the folder" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        demo.main(["--epochs", "0"])
    assert stop.value.code == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped"])
def test_data_file_that_is_not_the_one_expected(damage, tmp_path, capsys):
    content = bytearray((tasks.DATA_DIR / "nuclei.npz").read_bytes())
    path = tmp_path / "nuclei.npz"
    if damage == "truncated":
        path.write_bytes(content[:1000])
    elif damage == "flipped":
        content[5000] ^= 1
        path.write_bytes(content)
    assert run("--losses", "dice", "--data-dir", str(tmp_path), out=tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert str(path) in error
    assert ("missing" if damage == "missing" else tasks.SHA256["nuclei.npz"]) in error
    assert "--data-dir" in error
    assert "Traceback" not in error


def test_head_names_its_package_when_absent(tmp_path, capsys):
    assert run("--task", "head", "--losses", "dice", "--data-dir", str(tmp_path), out=tmp_path / "out") == 2
    assert "apt install mricron-data" in capsys.readouterr().err


def test_licence_texts_are_beside_the_data():
    assert "BSD 3-Clause" in (tasks.DATA_DIR / "nuclei.LICENSE.txt").read_text()
    assert "CC0 1.0" in (tasks.DATA_DIR / "README.md").read_text()


def test_every_loss_joins_by_itself(join):
    known = registry.entries()
    classes = {entry.class_name for entry in known.values()}
    assert set(segfuse.losses.__all__) - classes - set(registry.FOR_POINTS) == {
        "CompoundLoss",
        "DeepSupervisionLoss",
        "RegionLoss",
    }
    assert list(known)[:4] == ["bce", "weighted_ce", "balanced_ce", "focal"]
    join(BrokenLoss)
    assert registry.entries()["broken"].label == "Broken"
    assert [entry.id for entry in registry.choose("DiceLoss, focal-tversky,dice")] == ["dice", "focal_tversky"]


@pytest.mark.parametrize(
    "class_name, words",
    [
        ("FocalTverskyLoss", ["Focal", "Tversky"]),
        ("TLoss", ["T-Loss"]),
        ("MCCLoss", ["MCC"]),
        ("DiceCELoss", ["Dice", "CE"]),
        ("HausdorffDTLoss", ["Hausdorff", "DT"]),
        ("UNetWeightedCrossEntropyLoss", ["Unet", "Weighted", "Cross", "Entropy"]),
    ],
)
def test_names(class_name, words):
    assert registry.words(class_name) == words


def test_net_is_the_survey_s_shape():
    net = UNet()
    convolutions = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.ConvTranspose2d)]
    assert len(convolutions) == 10 + 8 + 1
    assert sum(p.numel() for p in net.parameters()) == 110_017
    assert net(torch.zeros(2, 1, 32, 48)).shape == (2, 1, 32, 48)


def test_hausdorff95():
    """Two bars three pixels apart; most of one contour lies on the other but for its ends."""
    a = torch.zeros(2, 1, 40, 40, dtype=torch.bool)
    b = a.clone()
    a[:, :, 10:20, 5:30] = True
    b[:, :, 13:23, 5:30] = True
    assert train.hausdorff95(a, b) == pytest.approx(3)
    assert train.hausdorff95(a, a) == 0
    b[1] = False  # no contour: the other image counts
    assert train.hausdorff95(a, b) == pytest.approx(3)
    assert train.hausdorff95(a, torch.zeros_like(a)) is None


def test_losses_that_need_a_companion_are_trained_beside_dice():
    entry = registry.entries()["boundary"]
    assert entry.call == "DiceLoss() + 0.1 * BoundaryLoss()"
    assert entry.label == "Dice + Boundary"
    assert list(entry.build().terms) == ["dice", "boundary"]


def test_split_keeps_train_and_test_apart():
    task = tasks.TASKS["nuclei"](None)
    assert task.train_image.shape[-1] + task.test_image.shape[-1] == 512 - 16
    image, mask = task.batch(torch.Generator().manual_seed(0))
    assert image.shape == mask.shape == (tasks.BATCH, 1, *task.crop)
    assert 0 <= image.min() < image.max() <= 1
    assert mask.unique().tolist() == [0, 1]


def test_a_loss_s_own_parameters_are_trained(short, threads, monkeypatch):
    torch.set_num_threads(1)
    built = []
    entry = registry.choose("t_loss")[0]
    build = registry.Entry.build
    monkeypatch.setattr(registry.Entry, "build", lambda self: built.append(build(self)) or built[-1])
    task = tasks.TASKS["nuclei"](None)
    before = [p.detach().clone() for p in entry.build().parameters()]
    train.train(entry, task, epochs=1, seed=0)
    after = list(built[-1].parameters())
    assert before
    assert all(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
