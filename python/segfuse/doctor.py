"""``segfuse doctor``: what is installed, which backends run here, and why one does not.

Everything is looked up when asked for, so the report also appears when the extension, or torch itself, is missing.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

BACKENDS = ("cpp", "cuda", "numba", "reference")
VARIABLES = ("SEGFUSE_BACKEND", "SEGFUSE_ISA", "SEGFUSE_DEBUG", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")

Report = dict[str, Any]


def main(as_json: bool = False) -> int:
    """Print the report; return 0 if the package is ready, 1 if something is wrong."""
    report = collect()
    print(json.dumps(report, indent=2) if as_json else render(report))
    return 0 if report["ready"] else 1


def version(package: str) -> str:
    """Installed version of a package, from its metadata."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def collect() -> Report:
    """Everything the report says, as JSON-serialisable values."""
    torch, torch_error = _import("torch")
    cpp, cpp_error = _import("segfuse._cpp")
    kernels, _ = _import("segfuse._cuda")
    backends, backends_error = _import("segfuse.backends")
    report: Report = {
        "versions": {
            "segfuse": version("segfuse"),
            "torch": getattr(torch, "__version__", version("torch")),
            "numpy": version("numpy"),
            "numba": version("numba"),
            "python": platform.python_version(),
            "platform": platform.platform(),
        },
        "errors": {"torch": torch_error, "segfuse._cpp": cpp_error, "segfuse.backends": backends_error},
        "backends": _backends(backends, backends_error),
        "cpu": _cpu(cpp),
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "threads": _threads(torch),
        "cuda": _cuda(torch, kernels),
    }
    problems = _problems(report)
    report.update(ready=not problems, problems=problems, warnings=_warnings(report))
    return report


def _import(name: str) -> tuple[Any, str | None]:
    try:
        return importlib.import_module(name), None
    except Exception as error:  # a broken install raises anything: OSError for a missing library, RuntimeError, ...
        return None, f"{type(error).__name__}: {error}"


def _backends(backends: Any, error: str | None) -> dict[str, dict[str, str | None]]:
    """Per op, the reason each backend cannot run; None where it can."""
    if backends is None:
        return {"every op": dict.fromkeys(BACKENDS, error)}
    table = {}
    for op in backends.OPS:
        reasons = backends.why_not(op)
        table[op] = {name: reasons[name] for name in BACKENDS}
    return table


def _cpu(cpp: Any) -> Report:
    isa = cpp.isa_info() if cpp is not None else {"found": [], "used": None}
    return {"model": _cpu_model(), "cores": os.cpu_count(), "isa_found": list(isa["found"]), "isa_used": isa["used"]}


def _cpu_model() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:  # not Linux
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def openmp_runtimes() -> list[str]:
    """The files of those that this process has loaded."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:  # not Linux: unknown
        return []
    return sorted(set(re.findall(r"(/\S*/lib(?:gomp|iomp5|omp)[-.]\S*)", maps)))


def _threads(torch: Any) -> Report:
    return {"torch": torch.get_num_threads() if torch is not None else None, "openmp": openmp_runtimes()}


def _cuda(torch: Any, kernels: Any) -> Report:
    cuda: Report = {"torch": None, "driver": _driver(), "kernels": [], "architectures": [], "devices": []}
    cuda["kernels"] = list(kernels.ARCHITECTURES) if kernels is not None else []
    if torch is None:
        return cuda
    cuda["torch"] = torch.version.cuda
    if torch.version.cuda and torch.cuda.is_available():
        cuda["architectures"] = torch.cuda.get_arch_list()
        for index in range(torch.cuda.device_count()):
            major, minor = torch.cuda.get_device_capability(index)
            cuda["devices"].append({"name": torch.cuda.get_device_name(index), "capability": f"{major}.{minor}"})
    return cuda


def _driver() -> str | None:
    try:
        found = re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)", Path("/proc/driver/nvidia/version").read_text())
    except OSError:  # no driver, or not Linux
        return None
    return found[1] if found else None


def _problems(report: Report) -> list[str]:
    """What keeps the package from running as it should, each with its fix."""
    errors, versions = report["errors"], report["versions"]
    if versions["torch"] == "not installed":
        return ["torch is not installed: pip install torch (pytorch.org lists the command for your CUDA version)"]
    if errors["torch"]:
        return [f"torch does not import ({errors['torch']}): reinstall torch"]
    if errors["segfuse.backends"]:
        return [f"segfuse does not import ({errors['segfuse.backends']}): pip install --force-reinstall segfuse"]
    problems = []
    if errors["segfuse._cpp"] and not _is_pure(report):
        problems.append(_without_extension(report))
    forced = report["environment"].get("SEGFUSE_BACKEND")
    if forced and any(reasons.get(forced, "unknown backend") for reasons in report["backends"].values()):
        problems.append(f"SEGFUSE_BACKEND={forced} forces a backend that cannot run here: unset it")
    forced = report["environment"].get("SEGFUSE_ISA")
    if forced and not errors["segfuse._cpp"] and forced != report["cpu"]["isa_used"]:
        problems.append(f"SEGFUSE_ISA={forced} is not available on this CPU: unset it")
    return problems


def _is_pure(report: Report) -> bool:
    """The extension was never built: a package that runs as it should, though not as fast as it could."""
    return str(report["errors"]["segfuse._cpp"]).startswith("ModuleNotFoundError")


def _without_extension(report: Report) -> str:
    numba = report["backends"]["pixel_stats"]["numba"] is None
    slower = "on Numba, slower and compiled at the first call" if numba else "on plain torch, correct but slow"
    return (
        f"the C++ extension is missing, so losses run {slower} ({report['errors']['segfuse._cpp']}): "
        "reinstall segfuse with a C++17 compiler at hand and SEGFUSE_NATIVE=ON"
        + ("" if numba else "; without a compiler, pip install numba")
    )


def _warnings(report: Report) -> list[str]:
    warnings = []
    if report["backends"].get("pixel_stats") and _is_pure(report):
        warnings.append(_without_extension(report))
    if len(report["threads"]["openmp"]) > 1:
        warnings.append(
            "more than one OpenMP runtime is loaded, each with threads of its own: import torch first, and see which "
            "package brings the second one"
        )
    return warnings


def render(report: Report) -> str:
    """The report as aligned lines, the verdict last."""
    cpu, threads, cuda = report["cpu"], report["threads"], report["cuda"]
    lines = [_line(name, value) for name, value in report["versions"].items()]
    alike: dict[str, list[str]] = {}  # ops with the same backends are told together
    for op, reasons in report["backends"].items():
        alike.setdefault(json.dumps(reasons), []).append(op)
    for told, ops in alike.items():
        reasons = json.loads(told)
        lines += ["", f"backends of {'every op' if len(alike) == 1 else ', '.join(ops)}"]
        lines += [_line(f"  {name}", "no   " + why if why else "yes") for name, why in reasons.items()]
    lines += ["", _line("cpu", f"{cpu['model']}, {cpu['cores']} cores")]
    lines += [_line("instruction sets", f"{', '.join(cpu['isa_found']) or 'unknown'}; used: {cpu['isa_used']}")]
    lines += [_line("threads", "unknown" if threads["torch"] is None else f"{threads['torch']}, as torch says")]
    lines += [_line("openmp", path) for path in threads["openmp"] or ["none seen"]]
    lines += [_line("cuda", f"torch built for {cuda['torch'] or 'CPU only'}; driver {cuda['driver'] or 'not found'}")]
    lines += [_line("  kernels", " ".join(cuda["kernels"]) or "not built")]
    if cuda["architectures"]:
        lines += [_line("  torch kernels", " ".join(cuda["architectures"]))]
    lines += [_line("  device", f"{d['name']}, compute capability {d['capability']}") for d in cuda["devices"]]
    lines += [_line(name, value) for name, value in report["environment"].items()]
    lines += ["", *(f"warning: {text}" for text in report["warnings"])]
    if report["ready"]:
        lines.append(f"ready: losses run on the {_best(report)} backend, {threads['torch']} threads")
    else:
        lines += [f"not ready: {text}" for text in report["problems"]]
    return "\n".join(lines)


def _line(name: str, value: object) -> str:
    return f"{name:<18}{value}"


def _best(report: Report) -> str:
    """The backend of tensors on the CPU."""
    reasons = report["backends"]["pixel_stats"]
    name = report["environment"].get("SEGFUSE_BACKEND") or next(n for n in BACKENDS if n != "cuda" and not reasons[n])
    return f"cpp ({report['cpu']['isa_used']})" if name == "cpp" else name


if __name__ == "__main__":
    sys.exit(main("--json" in sys.argv[1:]))
