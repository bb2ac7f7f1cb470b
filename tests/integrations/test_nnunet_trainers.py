"""Trainers for nnU-Net against its own: found by name, values and gradients of the losses, and a little training."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import json
import os
import subprocess
import sys
import types

import numpy as np
import pytest
import torch

from segfuse import cli
from segfuse.integrations import NNUNET_TRAINERS, nnunet_trainer_folder

pytestmark = pytest.mark.filterwarnings("ignore")

CPU = torch.device("cpu")
CLASSES = {"background": 0, "organ": 1, "tumour": 2}
REGIONS = {"background": 0, "organ": [1, 2], "tumour": 2}
LABELS = {  # name: (labels, order of the regions)
    "labels": (CLASSES, None),
    "labels_ignore": ({**CLASSES, "ignore": 3}, None),
    "regions": (REGIONS, [1, 2]),
    "regions_ignore": ({**REGIONS, "ignore": 3}, [1, 2]),
}


def needed(name: str):
    """A module, or skips the test: its losses alone need far less than nnU-Net's trainers."""
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"{name} does not import: {error}")


def plans(dims: int, batch_dice: bool) -> dict:
    """The smallest that nnU-Net takes: a network of four resolutions."""
    network = {
        "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
        "n_stages": 4,
        "features_per_stage": [4, 4, 8, 8],
        "kernel_sizes": [[3] * dims] * 4,
        "strides": [[1] * dims] + [[2] * dims] * 3,
        "n_conv_per_stage": [1] * 4,
        "n_conv_per_stage_decoder": [1] * 3,
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    resample = {}
    for what, is_seg in (("data", False), ("seg", True), ("probabilities", False)):
        resample[f"resampling_fn_{what}"] = "resample_data_or_seg_to_shape"
        resample[f"resampling_fn_{what}_kwargs"] = {"is_seg": is_seg, "order": 1, "order_z": 0}
    configuration = {
        "data_identifier": "tiny",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [32] * dims,
        "median_image_size_in_voxels": [32] * dims,
        "spacing": [2.0, 1.0, 1.0][-dims:],
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "batch_dice": batch_dice,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": network,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        **resample,
    }
    return {
        "dataset_name": "Dataset001_Tiny",
        "plans_name": "nnUNetPlans",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "image_reader_writer": "NaturalImage2DIO",
        "label_manager": "LabelManager",
        "configurations": {"tiny": configuration},
        "continue_training": False,
    }


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Trainers by name, found as nnU-Net finds them."""
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.setenv("nnUNet_extTrainer", str(nnunet_trainer_folder()))
    primus = "nnunetv2.training.nnUNetTrainer.primus.primus_trainers"
    try:  # the search by name imports all trainers; these need timm and torchvision, which may not load
        importlib.import_module(primus)
    except (ImportError, RuntimeError):
        monkeypatch.setitem(sys.modules, primus, types.ModuleType(primus))

    def made(name: str, kind: str = "labels", dims: int = 2, batch_dice: bool = True):
        labels, order = LABELS[kind]
        dataset = {"channel_names": {"0": "noise"}, "labels": labels, "file_ending": ".png", "numTraining": 5}
        dataset.update({} if order is None else {"regions_class_order": order})
        needed("nnunetv2.training.nnUNetTrainer.nnUNetTrainer")
        find = needed("nnunetv2.utilities.find_objects").recursive_find_trainer_class_by_name
        with contextlib.redirect_stdout(io.StringIO()):
            return find(name)(plans(dims, batch_dice), "tiny", 0, dataset, CPU)

    return made


def outputs(kind: str, dims: int):
    """Of three resolutions, with targets as nnU-Net's data loader gives them."""
    g = torch.Generator().manual_seed(dims)
    xs, ys = [], []
    for size in (24, 12, 6):
        shape = (2, 1, *[size] * dims)
        labels = torch.randint(0, 4 if "ignore" in kind else 3, shape, generator=g)
        regions = [(labels == 1) | (labels == 2), labels == 2] + [labels == 3] * ("ignore" in kind)
        xs.append(torch.randn((2, 2 if "regions" in kind else 3, *shape[2:]), generator=g, requires_grad=True))
        ys.append(torch.cat(regions, 1) if "regions" in kind else labels.float())
    return xs, ys


def outcome(loss, xs, ys):
    value = loss(xs, ys)
    return value.detach(), torch.autograd.grad(value, xs, allow_unused=True)


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize(("dims", "batch_dice"), [(2, True), (2, False), (3, False)])
def test_default_has_the_values_of_nnunet(make, kind, dims, batch_dice):
    xs, ys = outputs(kind, dims)
    theirs, ours = (make(n, kind, dims, batch_dice)._build_loss() for n in ("nnUNetTrainer", "nnUNetTrainerSegfuse"))
    assert type(theirs.loss).__module__.startswith("nnunetv2") and type(ours.loss).__module__.startswith("segfuse")
    (expected, slopes), (found, grads) = outcome(theirs, xs, ys), outcome(ours, xs, ys)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert len(slopes) == 3 and slopes[2] is None  # of weight 0
    for a, b in zip(grads[:2], slopes[:2]):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("name", list(NNUNET_TRAINERS)[1:])
def test_the_others_train_what_is_valid(make, name, kind):
    """Finite values, gradients for every voxel but the ignored ones, and validation without deep supervision."""
    xs, ys = outputs(kind, 2)
    trainer = make(name, kind)
    value, grads = outcome(trainer._build_loss(), xs, ys)
    assert value.isfinite() and all(g.isfinite().all() for g in grads[:2])
    ignored = ys[0][:, -1:] == (True if "regions" in kind else 3)
    ignored &= "ignore" in kind
    assert (grads[0].abs().amax(1, keepdim=True) == 0).equal(ignored)
    trainer.enable_deep_supervision = False
    single = trainer._build_loss()
    assert single(xs[0], ys[0]).isfinite()
    half = single(xs[0].bfloat16(), ys[0])
    torch.testing.assert_close(half, single(xs[0].bfloat16().float(), ys[0]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["nnUNetTrainerSegfuseBoundary", "nnUNetTrainerSegfuseHausdorff"])
def test_distances_know_the_shape_of_a_voxel(make, name):
    xs, ys = outputs("labels", 3)
    trainer = make(name, dims=3)
    trainer.configuration_manager.configuration["spacing"] = [3.0, 1.5, 1.5]
    assert trainer.spacing == (2.0, 1.0, 1.0)
    thick = trainer._build_loss()(xs, ys)
    trainer.configuration_manager.configuration["spacing"] = [1.5, 1.5, 1.5]
    assert thick.isfinite() and abs(float(thick - trainer._build_loss()(xs, ys))) > 1e-5


def test_dice_term_of_sums_is_that_of_nnunet(make):
    """The sum that boundary and Hausdorff are added to is Dice + cross-entropy; a loss, not a score: 1 more."""
    for kind in ("labels", "labels_ignore"):
        (x, *_), (y, *_) = outputs(kind, 2)
        trainer = make("nnUNetTrainerSegfuseBoundary", kind)
        theirs = make("nnUNetTrainer", kind)._build_loss().loss(x, y)
        found = trainer.on_targets(trainer.dice_and_entropy())(x, y)
        torch.testing.assert_close(found, theirs + 1, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["nnUNetTrainerSegfuse", "nnUNetTrainerSegfuseHausdorff"])
def test_a_little_training(make, tmp_path, name):
    """nnU-Net's network, data loader, augmentation and steps, on noise whose label is its sign."""
    numpy_set = needed("nnunetv2.training.dataloading.nnunet_dataset").nnUNetDatasetNumpy
    base = tmp_path / "preprocessed" / "Dataset001_Tiny"
    (base / "tiny").mkdir(parents=True)
    g = np.random.default_rng(0)
    for i in range(5):
        data = g.normal(size=(1, 1, 40, 40)).astype(np.float32)
        seg = (data > 0).astype(np.int16) + (data > 1)
        places = {c: np.argwhere(seg == c) for c in (1, 2)}
        numpy_set.save_case(data, seg.astype(np.int16), {"class_locations": places}, str(base / "tiny" / f"case{i}"))
    cases = [f"case{i}" for i in range(5)]
    (base / "splits_final.json").write_text(json.dumps([{"train": cases[:4], "val": cases[4:]}]))

    trainer = make(name)
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.initialize()
        trainer.set_deep_supervision_enabled(True)
        train, validate = trainer.get_dataloaders()
        trainer.on_train_epoch_start()
        losses = [float(trainer.train_step(next(train))["loss"]) for _ in range(12)]
        found = trainer.validation_step(next(validate))
    assert np.isfinite(losses).all() and np.isfinite(found["loss"]).all()
    assert np.mean(losses[-4:]) < np.mean(losses[:4])


def test_names_are_those_of_the_command(capsys, make):
    module = needed("segfuse.integrations.nnunet")
    assert sorted(module.__all__) == sorted(NNUNET_TRAINERS)
    assert cli.main(["nnunet"]) == 0
    assert capsys.readouterr().out == f"{nnunet_trainer_folder()}\n"
    for name in NNUNET_TRAINERS:  # in this process and in any other one of a launch: one class, imported by its name
        assert type(make(name)) is getattr(module, name)
        assert inspect.getmodule(getattr(module, name)) is module


def test_command_tells_the_names(capsys):
    with pytest.raises(SystemExit):
        cli.main(["nnunet", "--help"])
    text = capsys.readouterr().out
    assert all(name in text for name in NNUNET_TRAINERS) and "nnUNet_extTrainer" in text


def test_without_nnunet():
    code = "import sys; sys.modules['nnunetv2'] = None; import segfuse.integrations.nnunet"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ}, timeout=120)
    assert "ImportError: segfuse.integrations.nnunet needs nnU-Net v2" in run.stderr and "Try: pip" in run.stderr
