"""Every script of ``examples/`` runs as it is written, and its loss falls."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "examples"
NEEDS = {  # what the script imports
    "hugging_face": "from transformers import SegformerForSemanticSegmentation, Trainer",
    "lightning_module": "import lightning",
    "monai_bundle": "from monai.bundle import ConfigParser",
}

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="needs the source tree")


def python(*args: str) -> subprocess.CompletedProcess[str]:
    quiet = {"PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, *args], env={**os.environ, **quiet}, capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize("name", NEEDS)
def test_runs(name, tmp_path):
    run = python(str(FOLDER / f"{name}.py"))
    if run.returncode and (probe := python("-c", NEEDS[name])).returncode:
        pytest.skip(f"{NEEDS[name]!r} fails: {probe.stderr.strip().splitlines()[-1]}")
    assert run.returncode == 0, run.stdout + run.stderr
    pairs = re.findall(r"^\w+: (\S+) -> (\S+)$", run.stdout, re.MULTILINE)
    assert pairs and all(float(last) < float(first) for first, last in pairs), run.stdout


def test_every_example_is_run():
    assert {path.stem for path in FOLDER.glob("*.py")} == set(NEEDS)
