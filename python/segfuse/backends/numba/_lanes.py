"""Sixteen numbers side by side: a type for kernels, as registers hold it, instead of the compiler's guess about a loop.

A kernel loads lanes from a one-dimensional contiguous array, computes with ``+ - * / < > == != & | ^`` (a plain number
stands for itself in every lane) and with the functions below, and stores them. What is compiled is one instruction or
a few for each, on any processor, and in a fraction of the time that vectorising a loop takes.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, overload, register_model

LANES = 16
_INDEX = ir.IntType(32)


class Lanes(types.Type):
    """``LANES`` numbers of a type of Numba; of truth values, what a comparison gives."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype
        super().__init__(name=f"Lanes({dtype})")


def _element(dtype: Any) -> ir.Type:
    if dtype == types.boolean:
        return ir.IntType(1)
    if isinstance(dtype, types.Float):
        return ir.FloatType() if dtype.bitwidth == 32 else ir.DoubleType()
    return ir.IntType(dtype.bitwidth)


def _vector(dtype: Any) -> ir.VectorType:
    return ir.VectorType(_element(dtype), LANES)


@register_model(Lanes)
class _Model(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, _vector(fe_type.dtype))


def _splat(builder: Any, value: Any) -> Any:
    one = ir.VectorType(value.type, LANES)
    first = builder.insert_element(ir.Constant(one, ir.Undefined), value, ir.Constant(_INDEX, 0))
    same = ir.Constant(ir.VectorType(_INDEX, LANES), [0] * LANES)
    return builder.shuffle_vector(first, ir.Constant(one, ir.Undefined), same)


def _spread(context: Any, builder: Any, value: Any, given: Any, dtype: Any) -> Any:
    """Lanes of ``dtype`` from lanes or from a number."""
    return value if isinstance(given, Lanes) else _splat(builder, context.cast(builder, value, given, dtype))


# ---------------------------------------------------------------------------------------------------- operators


def _operator(op: Any, emit: Callable[[Any, Any, Any, Any], Any], compares: bool = False) -> None:
    @infer_global(op)
    class _Typing(AbstractTemplate):
        def generic(self, args: Any, kws: Any) -> Any:
            lanes = [a for a in args if isinstance(a, Lanes)]
            if len(args) != 2 or not lanes or any(a != lanes[0] for a in lanes):
                return None
            found = Lanes(types.boolean) if compares else lanes[0]
            return signature(found, *[types.unliteral(a) for a in args])

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        dtype = next(a.dtype for a in sig.args if isinstance(a, Lanes))
        a, b = (_spread(context, builder, value, given, dtype) for value, given in zip(args, sig.args))
        return emit(builder, dtype, a, b)

    for pair in ((Lanes, Lanes), (Lanes, types.Number), (types.Number, Lanes)):
        lower_builtin(op, *pair)(lower)


def _arithmetic(op: Any, of_float: str, of_integer: str) -> None:
    def emit(builder: Any, dtype: Any, a: Any, b: Any) -> Any:
        return getattr(builder, of_float if isinstance(dtype, types.Float) else of_integer)(a, b)

    _operator(op, emit)


def _comparison(op: Any, symbol: str) -> None:
    def emit(builder: Any, dtype: Any, a: Any, b: Any) -> Any:
        if isinstance(dtype, types.Float):  # false for NaN, but for !=
            return (builder.fcmp_unordered if symbol == "!=" else builder.fcmp_ordered)(symbol, a, b)
        signed = getattr(dtype, "signed", False)
        return (builder.icmp_signed if signed else builder.icmp_unsigned)(symbol, a, b)

    _operator(op, emit, compares=True)


_arithmetic(operator.add, "fadd", "add")
_arithmetic(operator.sub, "fsub", "sub")
_arithmetic(operator.mul, "fmul", "mul")
_arithmetic(operator.truediv, "fdiv", "sdiv")
for _op, _name in ((operator.and_, "and_"), (operator.or_, "or_"), (operator.xor, "xor")):
    _arithmetic(_op, _name, _name)
_arithmetic(operator.lshift, "shl", "shl")
_arithmetic(operator.rshift, "ashr", "ashr")
for _op, _name in (
    (operator.lt, "<"),
    (operator.le, "<="),
    (operator.gt, ">"),
    (operator.ge, ">="),
    (operator.eq, "=="),
    (operator.ne, "!="),
):
    _comparison(_op, _name)


# ---------------------------------------------------------------------------------------------------- memory


def _function(typed: Callable[..., Any]) -> Any:
    """A function that kernels may call, from one of types that returns its signature and what writes its code."""
    return intrinsic(typed)


def _address(context: Any, builder: Any, kind: Any, array: Any, at: Any, dtype: Any) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [at]), _vector(dtype).as_pointer())


@_function
def load(typing: Any, array: Any, at: Any) -> Any:
    """Lanes from ``array[at]`` on, unchecked."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        where = _address(context, builder, sig.args[0], args[0], args[1], sig.args[0].dtype)
        return builder.load(where, align=sig.args[0].dtype.bitwidth // 8)

    return Lanes(array.dtype)(array, types.intp), emit


@_function
def store(typing: Any, array: Any, at: Any, lanes: Any) -> Any:
    """Lanes to ``array[at]`` and on, unchecked."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        where = _address(context, builder, sig.args[0], args[0], args[1], sig.args[0].dtype)
        builder.store(args[2], where, align=sig.args[0].dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, Lanes(array.dtype)), emit


def _is_whole(builder: Any, count: Any) -> Any:
    return builder.icmp_signed(">=", count, ir.Constant(count.type, LANES))


def _each(builder: Any, count: Any, room: Any, body: Callable[[Any, Any], None]) -> None:
    """body(i, place in the room) for i < count"""
    elements = builder.bitcast(room, room.type.pointee.element.as_pointer())
    with cgutils.for_range(builder, count, intp=count.type) as loop:
        body(loop.index, builder.gep(elements, [loop.index]))


@_function
def take(typing: Any, array: Any, at: Any, count: Any) -> Any:
    """The first ``count`` lanes from ``array[at]`` on, 0 in the others."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind, dtype = sig.args[0], sig.args[0].dtype
        where = _address(context, builder, kind, args[0], args[1], dtype)
        data = builder.gep(context.make_array(kind)(context, builder, args[0]).data, [args[1]])
        room = cgutils.alloca_once(builder, _vector(dtype))
        with builder.if_else(_is_whole(builder, args[2]), likely=True) as (then, otherwise):
            with then:
                whole, from_whole = builder.load(where, align=dtype.bitwidth // 8), builder.block
            with otherwise:
                builder.store(ir.Constant(_vector(dtype), None), room)
                _each(
                    builder,
                    args[2],
                    room,
                    lambda i, to: builder.store(builder.load(builder.gep(data, [i])), to) and None,
                )
                some_, from_some = builder.load(room), builder.block
        found = builder.phi(_vector(dtype))
        found.add_incoming(whole, from_whole)
        found.add_incoming(some_, from_some)
        return found

    return Lanes(array.dtype)(array, types.intp, types.intp), emit


@_function
def put(typing: Any, array: Any, at: Any, count: Any, lanes: Any) -> Any:
    """Stores the first ``count`` lanes."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind, dtype = sig.args[0], sig.args[0].dtype
        where = _address(context, builder, kind, args[0], args[1], dtype)
        data = builder.gep(context.make_array(kind)(context, builder, args[0]).data, [args[1]])
        room = cgutils.alloca_once(builder, _vector(dtype))
        with builder.if_else(_is_whole(builder, args[2]), likely=True) as (then, otherwise):
            with then:
                builder.store(args[3], where, align=dtype.bitwidth // 8)
            with otherwise:
                builder.store(args[3], room)
                _each(
                    builder,
                    args[2],
                    room,
                    lambda i, from_: builder.store(builder.load(from_), builder.gep(data, [i])) and None,
                )
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, Lanes(array.dtype)), emit


@_function
def number(typing: Any, array: Any, value: Any) -> Any:
    """A number in the type of an array, which spares a kernel the names of types."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return context.cast(builder, args[1], sig.args[1], sig.args[0].dtype)

    return array.dtype(array, types.unliteral(value)), emit


@_function
def spread(typing: Any, array: Any, value: Any) -> Any:
    """A number in every lane, in the type of an array."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _spread(context, builder, args[1], sig.args[1], sig.args[0].dtype)

    return Lanes(array.dtype)(array, types.unliteral(value)), emit


@_function
def counting(typing: Any, array: Any) -> Any:
    """0, 1, 2, ... in the type of an array."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return ir.Constant(_vector(sig.args[0].dtype), list(range(LANES)))

    return Lanes(array.dtype)(array), emit


# ---------------------------------------------------------------------------------------------------- functions


@_function
def select(typing: Any, mask: Any, yes: Any, no: Any) -> Any:
    """Lanes of ``yes`` where the mask is true, else of ``no``; at least one of them is lanes."""
    dtype = next(a.dtype for a in (yes, no) if isinstance(a, Lanes))

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        a, b = (_spread(context, builder, args[i], sig.args[i], dtype) for i in (1, 2))
        return builder.select(args[0], a, b)

    return Lanes(dtype)(mask, types.unliteral(yes), types.unliteral(no)), emit


def _either(symbol: str) -> Callable[..., Any]:
    def typed(typing: Any, a: Any, b: Any) -> Any:
        dtype = next(x.dtype for x in (a, b) if isinstance(x, Lanes))

        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            x, y = (_spread(context, builder, args[i], sig.args[i], dtype) for i in (0, 1))
            compare = builder.fcmp_ordered if isinstance(dtype, types.Float) else builder.icmp_signed
            return builder.select(compare(symbol, x, y), x, y)

        return Lanes(dtype)(types.unliteral(a), types.unliteral(b)), emit

    return typed


@_function
def least(typing: Any, a: Any, b: Any) -> Any:
    """``a < b ? a : b``, so b where either is NaN."""
    return _either("<")(typing, a, b)


@_function
def most(typing: Any, a: Any, b: Any) -> Any:
    """``a > b ? a : b``, so b where either is NaN."""
    return _either(">")(typing, a, b)


def _call(context: Any, builder: Any, name: str, dtype: Any, *args: Any) -> Any:
    """An intrinsic function of LLVM on vectors."""
    vector = _vector(dtype)
    suffix = f"v{LANES}{'f' if isinstance(dtype, types.Float) else 'i'}{dtype.bitwidth}"
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(vector, [vector] * len(args)), f"llvm.{name}.{suffix}"
    )
    return builder.call(function, args)


def _unary(name: str) -> Callable[..., Any]:
    def typed(typing: Any, x: Any) -> Any:
        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return _call(context, builder, name, sig.args[0].dtype, args[0])

        return x(x), emit

    return typed


@_function
def root(typing: Any, x: Any) -> Any:
    return _unary("sqrt")(typing, x)


@_function
def magnitude(typing: Any, x: Any) -> Any:
    return _unary("fabs")(typing, x)


@_function
def rounded(typing: Any, x: Any) -> Any:
    """To whole numbers."""
    return _unary("rint")(typing, x)


@_function
def opposite(typing: Any, mask: Any) -> Any:
    return mask(mask), lambda context, builder, sig, args: builder.not_(args[0])


@_function
def multiply_add(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """a b + c, rounded once where the processor can."""
    dtype = next(x.dtype for x in (a, b, c) if isinstance(x, Lanes))

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        x, y, z = (_spread(context, builder, value, given, dtype) for value, given in zip(args, sig.args))
        return _call(context, builder, "fmuladd", dtype, x, y, z)

    return Lanes(dtype)(*[types.unliteral(x) for x in (a, b, c)]), emit


@_function
def convert(typing: Any, array: Any, lanes: Any) -> Any:
    """Lanes in the type of an array."""
    new, old = array.dtype, lanes.dtype

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        x, to = args[1], _vector(new)
        if isinstance(old, types.Float) and isinstance(new, types.Float):
            if old.bitwidth == new.bitwidth:
                return x
            return builder.fpext(x, to) if old.bitwidth < new.bitwidth else builder.fptrunc(x, to)
        if isinstance(new, types.Float):
            return (builder.sitofp if getattr(old, "signed", False) else builder.uitofp)(x, to)
        if isinstance(old, types.Float):
            return builder.fptosi(x, to)
        width = 1 if old == types.boolean else old.bitwidth
        if width == new.bitwidth:
            return x
        if width > new.bitwidth:
            return builder.trunc(x, to)
        return (builder.sext if getattr(old, "signed", False) else builder.zext)(x, to)

    return Lanes(new)(array, lanes), emit


@_function
def widened(typing: Any, lanes: Any) -> Any:
    """Whole numbers of 16 bits as signed ones of 32."""
    found = Lanes(types.int32)

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return (builder.sext if sig.args[0].dtype.signed else builder.zext)(args[0], _vector(found.dtype))

    return found(lanes), emit


@_function
def bits(typing: Any, lanes: Any) -> Any:
    """What floating-point lanes hold, as signed integers."""
    found = Lanes(types.int32 if lanes.dtype.bitwidth == 32 else types.int64)
    return found(lanes), lambda context, builder, sig, args: builder.bitcast(args[0], _vector(found.dtype))


@_function
def of_bits(typing: Any, lanes: Any) -> Any:
    """The way back."""
    found = Lanes(types.float32 if lanes.dtype.bitwidth == 32 else types.float64)
    return found(lanes), lambda context, builder, sig, args: builder.bitcast(args[0], _vector(found.dtype))


@_function
def constant(typing: Any, lanes: Any, value: Any) -> Any:
    """A number in every lane, in the type of other lanes."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _spread(context, builder, args[1], sig.args[1], sig.args[0].dtype)

    return lanes(lanes, types.unliteral(value)), emit


@_function
def _exp(typing: Any, x: Any) -> Any:
    return _unary("exp")(typing, x)


@_function
def _log(typing: Any, x: Any) -> Any:
    return _unary("log")(typing, x)


@_function
def convert_like(typing: Any, like: Any, lanes: Any) -> Any:
    """Whole numbers in the type of floating-point lanes."""
    return like(like, lanes), lambda context, builder, sig, args: builder.sitofp(args[1], _vector(like.dtype))


def _fold(symbol: str) -> Callable[..., Any]:
    def typed(typing: Any, lanes: Any) -> Any:
        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            dtype, x, width = sig.args[0].dtype, args[0], LANES
            while width > 1:
                width //= 2
                order = ir.Constant(ir.VectorType(_INDEX, LANES), [(i + width) % LANES for i in range(LANES)])
                other = builder.shuffle_vector(x, ir.Constant(x.type, ir.Undefined), order)
                if symbol == "+":
                    x = builder.fadd(x, other) if isinstance(dtype, types.Float) else builder.add(x, other)
                else:
                    compare = builder.fcmp_ordered if isinstance(dtype, types.Float) else builder.icmp_signed
                    x = builder.select(compare(symbol, x, other), x, other)
            return builder.extract_element(x, ir.Constant(_INDEX, 0))

        return lanes.dtype(lanes), emit

    return typed


@_function
def smallest(typing: Any, lanes: Any) -> Any:
    """Of the lanes."""
    return _fold("<")(typing, lanes)


@_function
def largest(typing: Any, lanes: Any) -> Any:
    """Of the lanes."""
    return _fold(">")(typing, lanes)


@_function
def total(typing: Any, lanes: Any) -> Any:
    """The lanes added up, always in the same order."""
    return _fold("+")(typing, lanes)


@_function
def some(typing: Any, mask: Any) -> Any:
    """Whether any lane of a mask is true."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        bits = builder.bitcast(args[0], ir.IntType(LANES))
        return builder.icmp_unsigned("!=", bits, ir.Constant(ir.IntType(LANES), 0))

    return types.boolean(mask), emit


# ---------------------------------------------------------------------------------------------------- parts


_PART: Any = {"_nrt": False, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
part = njit(error_model="numpy", nogil=True, forceinline=True, **_PART)  # of a kernel; compiled and kept with it


# ---------------------------------------------------------------------------------------------------- mathematics


def exp_negative(x: Any) -> Any:
    """e^x for x <= 0; float32: 0 below -87.3. NaN stays."""


@part
def _exp_negative(x: Any) -> Any:  # Cephes expf, as csrc/pixel.h has it
    c = select(x < -87.3, -87.3, x)
    shifted = c * 1.44269504 + 12582912.0  # 1.5 * 2^23 rounds to an integer in the low bits
    k = shifted - 12582912.0
    r = (c - k * 0.693359375) + k * 2.12194440e-4
    poly = multiply_add(constant(r, 1.9875691500e-4), r, 1.3981999507e-3)
    poly = multiply_add(poly, r, 8.3334519073e-3)
    poly = multiply_add(poly, r, 4.1665795894e-2)
    poly = multiply_add(poly, r, 1.6666665459e-1)
    poly = multiply_add(poly, r, 5.0000001201e-1)
    scale = of_bits((bits(shifted) - (0x4B400000 - 127)) << 23)
    return select(x < -87.3, 0, (poly * r * r + r + 1) * scale)


@overload(exp_negative, strict=False)
def _(x: Any) -> Callable[[Any], Any]:
    chosen = _exp_negative if x == Lanes(types.float32) else _exp
    return lambda x: chosen(x)


def log(x: Any) -> Any:
    """log x for x >= 0; float32: -infinity for 0 and subnormal numbers"""


@part
def _single_log(x: Any) -> Any:  # Cephes logf, as csrc/pixel.h has it
    shifted = bits(x) - 0x3F3504F3
    k = convert_like(x, shifted >> 23)
    f = of_bits((shifted & 0x007FFFFF) + 0x3F3504F3) - 1
    poly = multiply_add(constant(f, 7.0376836292e-2), f, -1.1514610310e-1)
    poly = multiply_add(poly, f, 1.1676998740e-1)
    poly = multiply_add(poly, f, -1.2420140846e-1)
    poly = multiply_add(poly, f, 1.4249322787e-1)
    poly = multiply_add(poly, f, -1.6668057665e-1)
    poly = multiply_add(poly, f, 2.0000714765e-1)
    poly = multiply_add(poly, f, -2.4999993993e-1)
    poly = multiply_add(poly, f, 3.3333331174e-1)
    f2 = f * f
    y = k * 0.693359375 + (f - (f2 * 0.5 - f2 * f * poly) - k * 2.12194440e-4)
    return select(x < 1.1754944e-38, -np.inf, select(x <= 3.4028234e38, y, x))


@overload(log, strict=False)
def _(x: Any) -> Callable[[Any], Any]:
    chosen = _single_log if x == Lanes(types.float32) else _log
    return lambda x: chosen(x)


@part
def log1p(t: Any) -> Any:
    """log(1 + t) for t >= 0; the quotient undoes what rounding 1 + t did."""
    u = t + 1
    beyond = u - 1
    return select((beyond == 0) | (t > 1e30), t, log(u) * (t / beyond))
