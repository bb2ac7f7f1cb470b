"""Write the newest results into README.md, between `<!-- benchmark:begin -->` and `<!-- benchmark:end -->`."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from measure import RESULTS
from peers import EVERY_SHAPE, LIBRARIES, LOSSES, PACKAGES, SMALL
from targets import extra_mib, over_floor, speedup

README = Path(__file__).parent.parent / "README.md"
NEAR = 1.15  # a small call takes about as long as another
COLUMNS = {
    "eager": "plain torch",
    "compile": "torch.compile",
    "monai": "MONAI",
    "smp": "SMP",
    "pytorch_msssim": "pytorch-msssim",
}


def span(values: Iterable[float | None], digits: int = 1) -> str:
    """Lowest and highest of what was measured."""
    known = sorted(value for value in values if value is not None)
    if not known:
        return ""
    low, high = f"{known[0]:.{digits}f}", f"{known[-1]:.{digits}f}"
    return low if low == high else f"{low}–{high}"


def faster(values: Iterable[float | None]) -> str:
    """As `span`, in bold where segfuse loses at some shape."""
    known = [value for value in values if value is not None]
    return f"**{span(known)}**" if known and min(known) < 1 else span(known)


def small_calls(times: dict[str, dict[str, float]]) -> list[str]:
    if not times:
        return []
    us = {name: timing["best_ms"] * 1e3 for name, timing in times.items()}
    bce = us.pop("eager BCE")
    slower = sorted((time, name) for name, time in us.items() if time > NEAR * bce)
    text = (
        f"At [4, 1, 64, 64] eager `F.binary_cross_entropy_with_logits` takes {bce:.0f} µs; "
        f"{len(us) - len(slower)} of the {len(us)} classes take {min(us.values()) / bce:.2f} to {NEAR} times as long"
    )
    others = ", ".join(f"`{name}` {time:.0f}" for time, name in slower)
    return [text + (f", the others in µs: {others}." if slower else "."), ""]


def table(results: dict[str, Any]) -> str:
    machine, peers = results["machine"], ("eager", "compile", *LIBRARIES)
    heads = ["loss", *(COLUMNS.get(peer, peer) for peer in peers), "time over the floor", "MiB beyond the gradient"]
    rows = [heads, ["---"] + ["---:"] * (len(heads) - 1)]
    for kind in ("binary", "multiclass"):
        for loss, row in LOSSES.items():
            cases = [
                case
                for case in results["cases"]
                if case["loss"] == loss
                and tuple(case["shape"]) != SMALL
                and (case["shape"][1] == 1) == (kind == "binary")
            ]
            if cases:
                ratios = [faster(speedup(case, peer) for case in cases) for peer in peers]
                rows.append(
                    [f"{row.title}, {kind}", *ratios, span(map(over_floor, cases)), span(map(extra_mib, cases))]
                )
    versions = machine["versions"]
    libraries = ", ".join(f"{name} {versions[name]}" for name in ("torch", *PACKAGES.values()) if versions.get(name))
    measured = {tuple(case["shape"]) for case in results["cases"]}
    shapes = ", ".join(str(list(shape)) for shape in EVERY_SHAPE if shape in measured and shape != SMALL)
    isa = f" ({machine['isa']})" if machine["isa"] else ""
    changed = " with changes" if machine["modified"] else ""
    commits = list(dict.fromkeys(case.get("commit", machine["commit"])[:10] for case in results["cases"]))
    lines = [
        "Time of forward plus backward as a multiple of segfuse's, lowest to highest over the shapes measured for the "
        f"loss, of {shapes}; **bold** where segfuse loses. The floor is the time that moving the bytes takes.",
        "",
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
        *small_calls(results.get("small", {})),
        f"{machine['cpu']}{isa}, {machine['threads']} threads; {libraries}; "
        f"segfuse {versions['segfuse'] or ''} at commit {' and '.join(commits)}{changed}, {machine['date']}.",
    ]
    return "\n".join(lines)


def main() -> None:
    found = [path for path in RESULTS.glob("*.json") if not path.name.startswith("gpu-")]
    newest = max(found, key=lambda path: json.loads(path.read_text())["machine"]["date"], default=None)
    if newest is None:
        sys.exit("no results yet: run benchmarks/measure.py")
    text, results = README.read_text(), json.loads(newest.read_text())
    marks = re.compile(r"(<!-- benchmark:begin -->\n).*?(<!-- benchmark:end -->)", re.DOTALL)
    if not marks.search(text):
        sys.exit("README.md has no <!-- benchmark:begin --> and <!-- benchmark:end -->")
    README.write_text(marks.sub(lambda found: f"{found[1]}{table(results)}\n{found[2]}", text))


if __name__ == "__main__":
    main()
