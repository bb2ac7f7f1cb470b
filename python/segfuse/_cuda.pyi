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
