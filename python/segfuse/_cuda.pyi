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
DeviceCode = tuple[int, int, int, int, int]  # addresses of code, constants and outputs; how many instructions, outputs

def pixel_stats_workspace(*, layout: Pass) -> int: ...
def pixel_stats_forward(*, where: Where, layout: Pass, inputs: Inputs, sums: int, workspace: int) -> None: ...
def pixel_stats_backward(
    *, where: Where, layout: Pass, inputs: Inputs, grad_input: int, upstream: int, coefficient: int
) -> None: ...
def pixel_stats_map(*, where: Where, layout: Pass, inputs: Inputs, loss_map: int, coefficient: int) -> None: ...
def formula_workspace(*, code: Sequence[int], N: int, C: int) -> int: ...
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
