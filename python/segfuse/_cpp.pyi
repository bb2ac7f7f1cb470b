from collections.abc import Sequence
from typing import TypedDict

Layout = tuple[int, Sequence[int]] | None  # number of the dtype; strides of N, C and every spatial axis

class IsaInfo(TypedDict):
    found: list[str]
    used: str

class Pass:
    def __init__(
        self,
        *,
        moments: Sequence[int],
        terms: Sequence[tuple[int, float, float, int]],
        rows: int,
        shape: Sequence[int],
        activation: int,
        index_target: bool,
        ignore_index: int,
        input: Layout,
        target: Layout,
        weight: Layout,
        mask: Layout,
        output: Layout,
        upstream: Layout,
    ) -> None: ...

class Code:
    def __init__(self, *, code: Sequence[int], constants: Sequence[float], outputs: Sequence[int]) -> None: ...

# Tensors are addresses; 0 stands for none.
def pixel_stats_forward(
    *, layout: Pass, input: int, target: int, weight: int, mask: int, sums: int, threads: int
) -> int: ...
def pixel_stats_backward(
    *,
    layout: Pass,
    input: int,
    target: int,
    weight: int,
    mask: int,
    grad_input: int,
    upstream: int,
    coefficient: int,
    threads: int,
) -> None: ...
def pixel_stats_map(
    *, layout: Pass, input: int, target: int, weight: int, mask: int, loss_map: int, coefficient: int, threads: int
) -> int: ...
def formula_forward(
    *,
    layout: Pass,
    code: Code,
    input: int,
    target: int,
    weight: int,
    mask: int,
    sums: int,
    parameters: int,
    grad_input: int,
    count_first: bool,
    value: int,
    value_is_double: bool,
    terms: int,
    threads: int,
) -> int: ...
def formula_backward(
    *,
    layout: Pass,
    code: Code,
    input: int,
    target: int,
    weight: int,
    mask: int,
    sums: int,
    parameters: int,
    grad_input: int,
    ahead: bool,
    written: bool,
    grad: int,
    grad_is_double: bool,
    parameter_grad: int,
    n_parameters: int,
    threads: int,
) -> float: ...

class HardPair:
    def __init__(
        self,
        *,
        shape: Sequence[int],
        first: int,
        dtype: int,
        index: bool,
        plain: bool,
        weight_per_class: bool,
        p: int,
        code: int,
        weight: int,
        grad: int,
    ) -> None: ...

def erosion_forward(*, pair: HardPair, steps: int, alpha: float, norm: int, sums: int, threads: int) -> None: ...
def disk_sums_forward(
    *, pair: HardPair, hard: int, radii: Sequence[int], alpha: float, sums: int, threads: int
) -> bool: ...
def pairwise_hausdorff_forward(
    *,
    pair: HardPair,
    mean: int,
    exponent: float,
    eps: float,
    points: int,
    begin: Sequence[int],
    losses: int,
    threads: int,
) -> None: ...
def huge_pages(*, data: int, bytes: int) -> None: ...
def isa_info() -> IsaInfo: ...
