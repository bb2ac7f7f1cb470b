from collections.abc import Sequence

from ._cpp import Code as Code
from ._cpp import HardPair as HardPair
from ._cpp import Inputs
from ._cpp import MomentsPass as MomentsPass
from ._cpp import Pass as Pass
from ._cpp import WindowPass as WindowPass

EMULATED: bool
ARCHITECTURES: list[str]

Where = tuple[int, int]  # number of the device, address of the stream
# Addresses of code, constants and outputs; numbers of instructions, constants and outputs; entries of all arrays
DeviceCode = tuple[int, int, int, int, int, int, int]

def pixel_stats_workspace(*, layout: Pass) -> int: ...
def pixel_stats_forward(*, where: Where, layout: Pass, inputs: Inputs, sums: int, workspace: int) -> None: ...
def pixel_stats_backward(
    *, where: Where, layout: Pass, inputs: Inputs, grad_input: int, upstream: int, coefficient: int
) -> None: ...
def pixel_stats_map(*, where: Where, layout: Pass, inputs: Inputs, loss_map: int, coefficient: int) -> None: ...
def formula_layout(*, code: Sequence[int], N: int, C: int) -> tuple[list[int], int]: ...
def formula_forward(
    *,
    where: Where,
    layout: Pass,
    code: DeviceCode,
    sums: int,
    parameters: int,
    workspace: int,
    value: int,
    value_is_double: bool,
    terms: int,
) -> None: ...
def formula_backward(
    *,
    where: Where,
    layout: Pass,
    code: DeviceCode,
    sums: int,
    parameters: int,
    n_parameters: int,
    workspace: int,
    grad: int,
    grad_is_double: bool,
    coefficient: int,
    parameter_grad: int,
) -> None: ...
def local_moments_workspace(*, layout: MomentsPass, images: int, gradient: bool) -> int: ...
def local_moments_forward(
    *, where: Where, layout: MomentsPass, a: int, b: int, rows: Sequence[int], workspace: int
) -> None: ...
def local_moments_backward(
    *, where: Where, layout: MomentsPass, a: int, b: int, grad_a: int, rows: Sequence[int], workspace: int
) -> None: ...
def ssim_workspace(*, layout: WindowPass, gradient: bool) -> int: ...
def ssim_forward(
    *,
    where: Where,
    layout: WindowPass,
    inputs: Inputs,
    buffers: Sequence[int],
    c1: float,
    c2: float,
    contrast: bool,
    grad_input: int,
    sums: int,
    workspace: int,
) -> None: ...
def ssim_backward(
    *,
    where: Where,
    layout: WindowPass,
    inputs: Inputs,
    buffers: Sequence[int],
    c1: float,
    c2: float,
    contrast: bool,
    coefficient: int,
    grad_input: int,
    workspace: int,
) -> None: ...
def cmssl_workspace(*, layout: WindowPass, gradient: bool, detach: bool) -> int: ...
def cmssl_forward(
    *,
    where: Where,
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
    workspace: int,
) -> None: ...
def cmssl_backward(
    *,
    where: Where,
    layout: WindowPass,
    inputs: Inputs,
    buffers: Sequence[int],
    c4: float,
    variance_eps: float,
    detach: bool,
    threshold: int,
    coefficient: int,
    grad_input: int,
    workspace: int,
) -> None: ...
def top_k_workspace(*, rows: int, length: int) -> int: ...
def top_k_forward(
    *,
    where: Where,
    rows: int,
    length: int,
    is_double: bool,
    values: int,
    valid: int,
    percent: float,
    chosen: int,
    sum: int,
    count: int,
    workspace: int,
) -> None: ...

class Distances:
    def __init__(
        self,
        *,
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
        output_double: bool,
        indices: bool,
        axes: int,
    ) -> None: ...

def distance_transform_edt_workspace(*, layout: Distances) -> int: ...
def distance_transform_edt(
    *, where: Where, layout: Distances, input: int, output: int, second: int, indices: int, workspace: int
) -> None: ...
def erosion_workspace(*, pair: HardPair, steps: int) -> int: ...
def erosion_forward(
    *, where: Where, pair: HardPair, steps: int, alpha: float, norm: int, sums: int, workspace: int
) -> None: ...
def disk_sums_workspace(*, pair: HardPair, radii: Sequence[int]) -> int: ...
def disk_sums_forward(
    *, where: Where, pair: HardPair, hard: int, radii: Sequence[int], alpha: float, sums: int, workspace: int
) -> None: ...
def pairwise_hausdorff_workspace(*, pair: HardPair, given: bool, count: int) -> int: ...
def pairwise_hausdorff_forward(
    *,
    where: Where,
    pair: HardPair,
    mean: int,
    exponent: float,
    eps: float,
    points: int,
    begin: int,
    count: int,
    losses: int,
    workspace: int,
) -> None: ...
def lovasz_extension_workspace(*, layout: Pass, per_image: bool, keep_slopes: bool, classes: int) -> int: ...
def lovasz_extension_forward(
    *,
    where: Where,
    layout: Pass,
    hinge: bool,
    per_image: bool,
    present: bool,
    wanted: bytes,
    keep_slopes: bool,
    classes: int,
    inputs: Inputs,
    slope: int,
    value: int,
    positives: int,
    workspace: int,
) -> None: ...
def lovasz_extension_backward(
    *,
    where: Where,
    layout: Pass,
    hinge: bool,
    per_image: bool,
    inputs: Inputs,
    slope: int,
    grad_input: int,
    coefficient: int,
) -> None: ...
