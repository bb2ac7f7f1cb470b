"""The tree reads as STYLE.md promises: one op, one name; and the extension links what it should and nothing else."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import segfuse
from segfuse.ops import distance_transform_edt, pixel_stats

ROOT = Path(__file__).parent.parent
FILES = (  # that every op has
    "csrc/cpp/{}.cpp",
    "csrc/cuda/{}.cu",
    "python/segfuse/ops/{}.py",
    "python/segfuse/backends/cpp/{}.py",
    "python/segfuse/backends/cuda/{}.py",
    "python/segfuse/backends/numba/{}.py",
    "python/segfuse/backends/reference/{}.py",
    "tests/ops/test_{}.py",
)
KERNELS, BENCHMARK = "csrc/cpp/{}_kernels.cpp", "benchmarks/ops/bench_{}.py"
OPS = {  # and the others
    "pixel_stats": [KERNELS, BENCHMARK],
    "formula": [],
    "distance_transform_edt": [KERNELS, BENCHMARK],
    "erosion": [KERNELS, BENCHMARK],
    "disk_sums": [KERNELS, BENCHMARK],
    "pairwise_hausdorff": [KERNELS, BENCHMARK],
    "lovasz_extension": [KERNELS, BENCHMARK],
    "top_k": [],
    "local_moments": [KERNELS, BENCHMARK],
    "ssim": [],  # these two share the kernels and the benchmark of local_moments
    "cmssl": [],
}
FUNCTIONS = {  # native functions, where they are not op_forward and op_backward
    "distance_transform_edt": ("distance_transform_edt",),
    "erosion": ("erosion_forward",),  # the forward pass of these writes the gradient
    "disk_sums": ("disk_sums_forward",),
    "pairwise_hausdorff": ("pairwise_hausdorff_forward",),
    "top_k": ("top_k_forward",),  # its backward is that of pixel_stats
}

pytestmark = pytest.mark.skipif(not (ROOT / "csrc").is_dir(), reason="needs the source tree")


def text(path: str) -> str:
    return (ROOT / path).read_text()


@pytest.mark.parametrize("op", OPS)
def test_one_op_one_name(op):
    missing = [path for path in (p.format(op) for p in (*FILES, *OPS[op])) if not (ROOT / path).is_file()]
    assert not missing
    interfaces = ("csrc/segfuse.h", "csrc/bindings/cpp.cpp", "python/segfuse/_cpp.pyi")
    for interface in (*interfaces, "csrc/segfuse_cuda.h", "csrc/bindings/cuda.cpp", "python/segfuse/_cuda.pyi"):
        for name in FUNCTIONS.get(op, (f"{op}_forward", f"{op}_backward")):
            assert re.search(rf"\b{name}\b", text(interface)), f"{name} is not in {interface}"


def test_every_op_is_known_here():
    modules = {path.stem for path in (ROOT / "python/segfuse/ops").glob("[!_]*.py")}
    assert modules == set(OPS) == set(segfuse.backends.OPS)


def test_numbers_agree_with_the_native_interface():
    """Sums, terms, dtypes and operations are numbered alike in Python and C++."""
    header = re.sub(r"//[^\n]*", "", text("csrc/segfuse.h"))

    def enum(name: str, source: str = header) -> list[str]:
        (body,) = re.findall(rf"enum {name}[^{{]*\{{([^}}]*)\}}", source)
        return [word for word in re.split(r"[,\s]+", body) if word]

    def spelled(names: list[str]) -> list[str]:
        return [name.lower() for name in names]

    assert [{"weight": "n"}.get(name, name) for name in spelled(enum("Moment"))[:-1]] == list(pixel_stats.MOMENTS)
    assert spelled(enum("TermKind")) == list(pixel_stats.TERMS)
    assert spelled(enum("DistanceMode")) == list(distance_transform_edt.MODES)
    from segfuse.ops import formula

    assert spelled(enum("Op", re.sub(r"//[^\n]*", "", text("csrc/formula.h")))) == formula.OPS
    from segfuse.ops import cmssl, local_moments

    assert spelled(enum("Scope")) == list(cmssl.SCOPES)
    assert f"MAX_RADIUS = {local_moments.MAX_SIZE // 2};" in header
    from segfuse.backends import _layout

    short = {"float": "f", "bfloat": "bf", "uint": "u", "int": "i"}
    ours = [re.sub(r"^[a-z]+(?=\d)", lambda m: short[m[0]], str(d).removeprefix("torch.")) for d in _layout.DTYPE]
    assert ours == spelled(enum("DType"))
    assert list(_layout.DTYPE.values()) == list(range(len(_layout.DTYPE)))
    assert [name.upper() for name in _layout.ACTIVATION] == enum("Activation")


def test_losses_never_see_a_pointer_and_ops_never_see_a_loss():
    for path in (ROOT / "python/segfuse/losses").glob("*.py"):
        assert not re.search(r"data_ptr|_cpp\b|torch\.autograd\.Function|autograd\.grad", path.read_text()), path.name
    for path in (ROOT / "python/segfuse/ops").glob("*.py"):
        assert not re.search(r"import .*losses|from \.\.losses", path.read_text()), path.name


def test_every_loss_lives_in_the_file_of_its_noun():
    for name in segfuse.losses.__all__:
        module = getattr(segfuse.losses, name).__module__.removeprefix("segfuse.losses.")
        if not module.startswith("_"):
            assert (ROOT / f"tests/losses/test_{module}.py").is_file(), name


def test_kernels_know_neither_python_nor_torch():
    for path in [*ROOT.glob("csrc/*.h"), *ROOT.glob("csrc/cpp/*"), *ROOT.glob("csrc/cuda/*")]:
        assert not re.search(r"#include\s*[<\"](Python|torch|ATen|c10|pybind11)", path.read_text()), path.name
    assert "ffast-math" not in re.sub(r"#[^\n]*", "", text("CMakeLists.txt"))


@pytest.mark.parametrize("extension", ["cpp", "cuda"])
def test_bindings_take_keywords_only(extension):
    source = text(f"csrc/bindings/{extension}.cpp")
    module = pytest.importorskip(f"segfuse._{extension}")
    for name in re.findall(r'm\.def\(\s*"(\w+)"', source):
        function = getattr(module, name)
        signature = function.__doc__.split("\n")[0]
        assert "(*," in signature or "()" in signature, signature


# ------------------------------------------------------------------------------------------- the built extension


def built() -> Path:
    return Path(pytest.importorskip("segfuse._cpp").__file__)


def output(*command: str) -> str:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(done.stderr.strip())
    return done.stdout


def test_not_linked_to_torch():
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", output("readelf", "-d", str(built())))
    assert needed
    assert not [name for name in needed if re.match(r"lib(torch|c10|python)", name)], needed


def test_only_the_module_is_exported():
    """Nothing of it can meet a symbol of another library."""
    exported = [line.split()[-1] for line in output("nm", "-D", "--defined-only", str(built())).splitlines()]
    ours = [name for name in exported if "segfuse" in name]
    assert "PyInit__cpp" in exported
    assert not ours, ours


def test_no_weak_symbols_in_code_for_one_instruction_set():
    """The linker keeps one copy of an inline function: it must not be the one compiled for AVX-512."""
    built = [p for p in ROOT.glob("build/**/*.o") if "sanitize" not in p.parts]
    objects = [p for p in built if re.search(r"_kernels|_avx|_baseline", str(p))]
    if not objects:
        pytest.skip("the objects are not here")
    for path in objects:
        weak = [line for line in output("nm", "-C", str(path)).splitlines() if re.search(r"^\S+ [WVu] ", line)]
        assert not weak, (path.name, weak[:5])
