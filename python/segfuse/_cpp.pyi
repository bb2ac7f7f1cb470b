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

class MomentsPass:
    def __init__(
        self,
        *,
        shape: Sequence[int],
        weights: Sequence[Sequence[float]],
        valid: bool,
        a: Layout,
        b: Layout,
        output: Layout,
    ) -> None: ...

class WindowPass:
    def __init__(
        self,
        *,
        shape: Sequence[int],
        weights: Sequence[Sequence[float]],
        valid: bool,
        activation: int,
        exclusive: bool,
        index_target: bool,
        ignore_index: int,
        first_class: int,
        input: Layout,
        target: Layout,
        weight: Layout,
        mask: Layout,
        output: Layout,
    ) -> None: ...

def local_moments_forward(*, layout: MomentsPass, a: int, b: int, rows: Sequence[int], threads: int) -> None: ...
def local_moments_backward(
    *, layout: MomentsPass, a: int, b: int, grad_a: int, rows: Sequence[int], threads: int
) -> None: ...
def cmssl_forward(
    *,
    layout: WindowPass,
    input: int,
    target: int,
    weight: int,
    mask: int,
    buffers: Sequence[int],
    c4: float,
    variance_eps: float,
    beta: float,
    scope: int,
    error: int,
    threshold: int,
    sums: int,
    threads: int,
) -> int: ...
def cmssl_backward(
    *,
    layout: WindowPass,
    input: int,
    target: int,
    weight: int,
    mask: int,
    buffers: Sequence[int],
    c4: float,
    variance_eps: float,
    detach: bool,
    threshold: int,
    coefficient: int,
    grad_input: int,
    threads: int,
) -> None: ...
def ssim_forward(
    *,
    layout: WindowPass,
    input: int,
    target: int,
    weight: int,
    mask: int,
    buffers: Sequence[int],
    c1: float,
    c2: float,
    contrast: bool,
    grad_input: int,
    sums: int,
    threads: int,
) -> int: ...
def ssim_backward(
    *,
    layout: WindowPass,
    input: int,
    target: int,
    weight: int,
    mask: int,
    buffers: Sequence[int],
    c1: float,
    c2: float,
    contrast: bool,
    coefficient: int,
    grad_input: int,
    threads: int,
) -> None: ...
def huge_pages(*, data: int, bytes: int) -> None: ...
def isa_info() -> IsaInfo: ...
