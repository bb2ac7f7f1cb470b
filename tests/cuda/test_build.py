"""What `make cuda` built: hot kernels keep to their registers, and the extension needs nothing that CUDA brings."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BUILD = Path(__file__).parent.parent.parent / "build"
LOG = BUILD / "cuda.log"
# Kernels that may keep values in memory: instances for rare options, and double, which few train in.
COLD = r"ILi2E|_map|Id"

pytestmark = pytest.mark.skipif(not LOG.is_file(), reason="the CUDA kernels are not compiled: make cuda")


def report() -> dict[str, int]:
    """Bytes that each kernel spills, by its mangled name."""
    entry = re.compile(
        r"Compiling entry function '(\S+)' for.*?(\d+) bytes spill stores, (\d+) bytes spill loads", re.S
    )
    return {name: int(stores) + int(loads) for name, stores, loads in entry.findall(LOG.read_text())}


def built() -> Path:
    (path,) = (BUILD / "cuda").glob("_cuda*")
    return path


def output(*command: str) -> str:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_hot_kernels_do_not_spill():
    kernels = report()
    assert len(kernels) > 20
    spilling = {name: bytes for name, bytes in kernels.items() if bytes and not re.search(COLD, name)}
    assert not spilling


def test_brings_its_own_runtime():
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", output("readelf", "-d", str(built())))
    assert needed
    assert not [name for name in needed if re.match(r"lib(torch|c10|python|cu|nv)", name)], needed


def test_only_the_module_is_exported():
    exported = [line.split()[-1] for line in output("nm", "-D", "--defined-only", str(built())).splitlines()]
    assert "PyInit__cuda" in exported
    assert not [name for name in exported if "segfuse" in name or name.startswith("cuda")]


def test_imports_without_a_driver():
    code = f"import sys; sys.path.insert(0, {str(built().parent)!r}); import _cuda; print(_cuda.ARCHITECTURES)"
    assert output(sys.executable, "-c", code).strip() not in ("", "[]")
