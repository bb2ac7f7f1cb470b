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
        terms: Sequence[tuple[int, float, float, int, bool]],
        rows: int,
        shape: Sequence[int],
        activation: int,
        index_target: bool,
        ignore_index: int,
        input: Layout,
        target: Layout,
        weight: Layout,
        mask: Layout,
        distance: Layout,
        output: Layout,
        upstream: Layout,
    ) -> None: ...

class Code:
    def __init__(self, *, code: Sequence[int], constants: Sequence[float], outputs: Sequence[int]) -> None: ...

# Tensors are addresses; 0 stands for none.
Inputs = tuple[int, int, int, int, int]  # input, target, weight, mask, distance

def pixel_stats_forward(
    *, layout: Pass, inputs: Inputs, sums: int, segments: int, groups: int, threads: int
) -> int: ...
def pixel_stats_backward(
    *,
    layout: Pass,
    inputs: Inputs,
    grad_input: int,
    upstream: int,
    coefficient: int,
    segments: int,
    groups: int,
    threads: int,
) -> None: ...
def pixel_stats_map(*, layout: Pass, inputs: Inputs, loss_map: int, coefficient: int, threads: int) -> int: ...
def lovasz_extension_forward(
    *,
    layout: Pass,
    hinge: bool,
    per_image: bool,
    present: bool,
    wanted: bytes,
    keep_slopes: bool,
    classes: int,
    input: int,
    target: int,
    mask: int,
    slope: int,
    value: int,
    positives: int,
    threads: int,
) -> int: ...
def lovasz_extension_backward(
    *,
    layout: Pass,
    hinge: bool,
    per_image: bool,
    input: int,
    slope: int,
    grad_input: int,
    coefficient: int,
    threads: int,
) -> None: ...
def top_k_forward(
    *,
    rows: int,
    length: int,
    is_double: bool,
    values: int,
    valid: int,
    percent: float,
    chosen: int,
    sum: int,
    count: int,
    threads: int,
) -> None: ...
def formula_forward(
    *,
    layout: Pass,
    code: Code,
    inputs: Inputs,
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
    inputs: Inputs,
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
def distance_transform_edt(
    *,
    input: int,
    dtype: int,
    leading_shape: Sequence[int],
    leading_strides: Sequence[int],
    shape: Sequence[int],
    strides: Sequence[int],
    spacing: Sequence[float],
    mode: int,
    classes: Sequence[int] | None,
    threshold: float,
    squared: bool,
    output: int,
    output_double: bool,
    second: int,
    indices: int,
    axes: int,
    threads: int,
) -> int: ...

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
    inputs: Inputs,
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
    inputs: Inputs,
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
    inputs: Inputs,
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
    inputs: Inputs,
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
