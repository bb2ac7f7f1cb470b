"""What the measured numbers have to reach, and how to print them. Works on the dictionaries of a results file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from peers import DISTANCE, LARGE, LIBRARIES, LOSSES, SHAPES, SMALL, SORTED, WINDOWS

CaseResult = dict[str, Any]


def speedup(case: CaseResult, name: str) -> float | None:
    """How many times the time of segfuse, set the same way, `name` takes."""
    times, baseline = case["times"], case["baseline"].get(name)
    return times[name]["best_ms"] / times[baseline]["best_ms"] if name in times and baseline in times else None


def over_floor(case: CaseResult) -> float | None:
    return case["times"]["segfuse"]["best_ms"] / case["floor_ms"] if "segfuse" in case["times"] else None


def over_terms(case: CaseResult) -> float | None:
    """Time of a compound over the dearest of its terms alone."""
    terms = [timing["best_ms"] for name, timing in case["times"].items() if name.startswith("term ")]
    return case["times"]["segfuse"]["best_ms"] / max(terms) if terms and "segfuse" in case["times"] else None


def fastest_library(case: CaseResult) -> float | None:
    return min((ratio for name in LIBRARIES if (ratio := speedup(case, name)) is not None), default=None)


def compiled_code(case: CaseResult) -> float | None:
    return speedup(case, "compile")


def extra_mib(case: CaseResult, name: str = "segfuse") -> float | None:
    """Peak memory beyond the gradient; 0 where the process had some of that to spare."""
    peak = case["peak_mib"].get(name)
    return None if peak is None else max(0.0, peak - case["gradient_mib"])


@dataclass(frozen=True)
class Target:
    text: str
    value: Callable[[CaseResult], float | None]
    sign: str  # "<=" or ">="
    limit: float
    losses: Sequence[str] = tuple(LOSSES)
    classes: str = "any"  # "binary", "multiclass" or "any"
    shapes: Sequence[tuple[int, ...]] = tuple(LARGE)

    def covers(self, case: CaseResult) -> bool:
        kind = "binary" if case["shape"][1] == 1 else "multiclass"
        return case["loss"] in self.losses and self.classes in ("any", kind) and tuple(case["shape"]) in self.shapes

    def reached(self, value: float) -> bool:
        return value <= self.limit if self.sign == "<=" else value >= self.limit


SINGLE = ("focal", "dice", "tversky", "focal_tversky")
PAIRS = ("dice_ce", "combo", "dice_focal")
TARGETS = [
    Target("time over the floor", over_floor, "<=", 1.5, (*SINGLE, "dice_ce", "combo")),
    Target("torch.compile over segfuse", compiled_code, ">=", 1.0, shapes=SHAPES),
    Target("torch.compile over segfuse, multiclass focal", compiled_code, ">=", 1.8, ("focal",), "multiclass"),
    Target("torch.compile over segfuse, multiclass Dice", compiled_code, ">=", 3.0, ("dice",), "multiclass"),
    Target("torch.compile over segfuse, binary focal", compiled_code, ">=", 2.5, ("focal",), "binary"),
    Target("fastest library over segfuse, binary focal", fastest_library, ">=", 8.0, ("focal",), "binary"),
    Target("fastest library over segfuse, multiclass focal", fastest_library, ">=", 4.0, ("focal",), "multiclass"),
    Target("fastest library over segfuse, binary", fastest_library, ">=", 2.0, ("dice", "tversky"), "binary"),
    Target("fastest library over segfuse, multiclass", fastest_library, ">=", 4.0, ("dice", "tversky"), "multiclass"),
    Target("fastest library over segfuse, compounds", fastest_library, ">=", 6.0, (*PAIRS, "four"), "multiclass"),
    Target("two terms over the dearer one", over_terms, "<=", 1.15, PAIRS),
    Target("four terms over the dearest one", over_terms, "<=", 1.4, ("four",)),
    Target("MiB beyond the gradient", extra_mib, "<=", 2.0, shapes=SHAPES),
    Target("fastest library over segfuse", fastest_library, ">=", 30.0, ("hausdorff_dt",), shapes=DISTANCE),
    Target("fastest library over segfuse", fastest_library, ">=", 20.0, ("boundary",), shapes=DISTANCE),
    Target("fastest library over segfuse", fastest_library, ">=", 8.0, ("ssim",), shapes=WINDOWS),
    Target("fastest library over segfuse", fastest_library, ">=", 4.0, ("lovasz",), shapes=SORTED),
]


def judge(results: dict[str, Any]) -> list[dict[str, Any]]:
    """One row for each target, loss and shape: the value, and whether it was reached (None: not measured)."""
    rows = []
    for target in TARGETS:
        for case in filter(target.covers, results["cases"]):
            value = target.value(case)
            rows.append(
                {
                    "target": f"{target.text} {target.sign} {target.limit}",
                    "loss": case["loss"],
                    "shape": case["shape"],
                    "value": value,
                    "reached": None if value is None else target.reached(value),
                }
            )
    small = results.get("small", {})
    for name in small.keys() - {"eager BCE"}:
        value = small[name]["best_ms"] / small["eager BCE"]["best_ms"]
        row = {"target": "time over eager BCE < 1", "loss": name, "shape": list(SMALL)}
        rows.append({**row, "value": value, "reached": value < 1})
    return rows


def dims(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def describe(case: CaseResult) -> str:
    """The lines of one case."""
    rate = {key: value / 1e9 for key, value in case["bandwidth"].items()}
    lines = [
        f"{case['loss']} {dims(case['shape'])}: floor {case['floor_ms']:.2f} ms (memory: read {rate['read']:.1f}, "
        f"copy {rate['copy']:.1f} GB/s)"
        + (f"; {case['floor_here_ms']:.2f} ms on buffers of this size" if "floor_here_ms" in case else "")
    ]
    for name, timing in case["times"].items():
        ratio, extra = speedup(case, name), extra_mib(case, name)
        lines.append(
            f"  {name:20} {timing['best_ms']:10.3f} ms  median {timing['median_ms']:10.3f}"
            f"{timing['best_ms'] / case['floor_ms']:8.2f} x floor"
            + (" " * 17 if ratio is None else f"{ratio:8.2f} x segfuse")
            + ("" if extra is None else f"  gradient + {extra:.1f} MiB")
        )
    lines += [f"  {name:20} not compared: {why}" for name, why in case["not_compared"].items()]
    return "\n".join(lines + [f"  {name:20} {note}" for name, note in case.get("notes", {}).items()])


def describe_targets(rows: list[dict[str, Any]]) -> str:
    """For each target how many cases reach it, and those that do not."""
    lines = []
    for target in dict.fromkeys(row["target"] for row in rows):
        known = [row for row in rows if row["target"] == target and row["reached"] is not None]
        missed = [row for row in known if not row["reached"]]
        lines.append(f"{target}: {len(known) - len(missed)} of {len(known)}")
        lines += [f"  not reached: {row['loss']} {dims(row['shape'])} {row['value']:.3g}" for row in missed]
    return "\n".join(lines)
