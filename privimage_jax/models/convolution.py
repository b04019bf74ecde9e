"""A convolution whose gradients are fast inside compiled loops, and the switch that puts it into unmodified models.

XLA's CPU back end computes the weight gradient of a convolution inside a ``while`` loop without its fast library path
(tens of times slower), and every microbatch loop is one. `convolve` states its own derivatives instead: with respect to
the input, a forward convolution with the flipped, transposed kernel; with respect to the kernel, one matrix product per
kernel offset over all (example, row, column) positions. It is for CPUs; GPUs and TPUs keep XLA's own derivatives.
Per-example gradients do not need it: `privacy.weight_gradients` has a rule for each device.
"""

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

Padding = Sequence[tuple[int, int]]


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    padding: Padding,
    precision: lax.PrecisionLike = None,
    strides: Sequence[int] = (),
    dilation: Sequence[int] = (),
    groups: int = 1,
) -> jax.Array:
    """Convolution over any number of axes, for reverse-mode differentiation only.

    Args:
      x: [B, *sides, I], float32 or bfloat16.
      kernel: [*window, I / groups, O], of the same dtype.
      padding: zeros (before, after) along each side.
      precision: of the forward and of both gradient products.
      strides, dilation: along each side; () is 1 everywhere. Dilation spreads the kernel.
      groups: input and output channels are cut into so many groups, each convolved alone.

    Returns:
      [B, *sides', O] in the dtype of ``x``. The kernel's gradient is accumulated in float32.
    """
    # Inside shard_map a kernel that is equal on all devices must be marked as varying like x: the mark's transpose then
    # sums the kernel's gradient over the devices, as for JAX's own operations.
    if missing := tuple(_varying_axes(x) - _varying_axes(kernel)):
        kernel = lax.pcast(kernel, missing, to="varying")
    if missing := tuple(_varying_axes(kernel) - _varying_axes(x)):
        x = lax.pcast(x, missing, to="varying")
    ones = (1,) * (x.ndim - 2)
    pads = tuple((before, after) for before, after in padding)
    geometry = _Geometry(pads, tuple(strides) or ones, tuple(dilation) or ones, groups)
    return _convolve(x, kernel, geometry, precision)


class _Geometry(NamedTuple):
    padding: tuple[tuple[int, int], ...]
    strides: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


def _varying_axes(x: jax.Array) -> frozenset[str]:
    """The mesh axes of an enclosing shard_map along which ``x`` differs."""
    aval = jax.typeof(x)
    manual = getattr(aval, "manual_axis_type", None)  # named `vma` in some of the JAX versions that we support
    return aval.vma if manual is None else manual.varying


def _channels_last(ndim: int) -> lax.ConvDimensionNumbers:
    """Images [B, *sides, C] and kernels [*window, I, O], as ``nn.Conv`` has them."""
    images = (0, ndim - 1, *range(1, ndim - 1))
    return lax.ConvDimensionNumbers(images, (ndim - 1, ndim - 2, *range(ndim - 2)), images)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(x: jax.Array, kernel: jax.Array, geometry: _Geometry, precision: lax.PrecisionLike) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        geometry.strides,
        geometry.padding,
        rhs_dilation=geometry.dilation,
        dimension_numbers=_channels_last(x.ndim),
        feature_group_count=geometry.groups,
        precision=precision,
    )


def _forward(
    x: jax.Array, kernel: jax.Array, geometry: _Geometry, precision: lax.PrecisionLike
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _convolve(x, kernel, geometry, precision), (x, kernel)


def _backward(
    geometry: _Geometry, precision: lax.PrecisionLike, residuals: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    padding, strides, dilation, groups = geometry
    window = kernel.shape[:-2]
    spans = [(side - 1) * step for side, step in zip(window, dilation, strict=True)]
    padded = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((*pair, 0) for pair in padding), (0, 0, 0)])

    dense = _undo_strides(dy, strides, [side - span for side, span in zip(padded.shape[1:-1], spans, strict=True)])
    mirrored = tuple((span - before, span - after) for span, (before, after) in zip(spans, padding, strict=True))
    stride_1 = _Geometry(mirrored, (1,) * len(window), dilation, groups)
    dx = _convolve(dense, _mirrored(kernel, groups), stride_1, precision)

    dy_rows = _rows(dy, groups)
    reach = [stride * (side - 1) + 1 for stride, side in zip(strides, dy.shape[1:-1], strict=True)]

    def at_offset(offset: tuple[int, ...]) -> jax.Array:
        starts = [place * step for place, step in zip(offset, dilation, strict=True)]
        seen = (slice(s, s + r, stride) for s, r, stride in zip(starts, reach, strides, strict=True))
        rows = _rows(padded[:, *seen], groups)
        product = "ti,to->io" if groups == 1 else "tgi,tgo->igo"
        return jnp.einsum(product, rows, dy_rows, precision=precision, preferred_element_type=jnp.float32)

    dkernel = jnp.stack([at_offset(offset) for offset in itertools.product(*map(range, window))])
    return dx, dkernel.reshape(kernel.shape).astype(kernel.dtype)


def _rows(x: jax.Array, groups: int) -> jax.Array:
    """[B, *sides, C] as [positions, C], or [positions, groups, C / groups]."""
    channels = x.shape[-1]
    return x.reshape(-1, channels) if groups == 1 else x.reshape(-1, groups, channels // groups)


def _mirrored(kernel: jax.Array, groups: int) -> jax.Array:
    """The kernel that takes output gradients back to the input: flipped along each side, channels swapped per group."""
    *window, n_in, n_out = kernel.shape
    flipped = jnp.flip(kernel, range(len(window))).reshape(*window, n_in, groups, n_out // groups)
    return jnp.swapaxes(flipped, -3, -1).reshape(*window, n_out // groups, groups * n_in)


def _undo_strides(dy: jax.Array, strides: Sequence[int], sides: Sequence[int]) -> jax.Array:
    """The output gradient as the convolution of stride 1 would have it: zeros where strides left positions out."""
    if all(stride == 1 for stride in strides):
        return dy
    rests = [side - stride * (n - 1) - 1 for side, stride, n in zip(sides, strides, dy.shape[1:-1], strict=True)]
    edges = [(0, 0, 0), *((0, rest, stride - 1) for rest, stride in zip(rests, strides, strict=True)), (0, 0, 0)]
    return lax.pad(dy, jnp.zeros((), dy.dtype), edges)


_convolve.defvjp(_forward, _backward)


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: Any,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    **options: Any,
) -> jax.Array:
    """`jax.lax.conv_general_dilated`, by `convolve` where that is possible; for ``nn.Conv``'s field of this name.

    Transposed convolutions and other memory layouts go to XLA.
    """
    sides = lhs.ndim - 2
    plain = (
        (lhs_dilation is None or all(step == 1 for step in lhs_dilation))
        and lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers) == _channels_last(lhs.ndim)
        and lhs.dtype == rhs.dtype
        and all(options[name] in (None, 1) for name in options if name not in ("precision", "feature_group_count"))
    )
    if not plain:
        return lax.conv_general_dilated(
            lhs, rhs, window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers, **options
        )
    dilation = tuple(rhs_dilation or (1,) * sides)
    if isinstance(padding, str):
        window = [(side - 1) * step + 1 for side, step in zip(rhs.shape[:sides], dilation, strict=True)]
        padding = lax.padtype_to_pads(lhs.shape[1:-1], window, window_strides, padding)
    groups = options.get("feature_group_count", 1)
    return convolve(lhs, rhs, padding, options.get("precision"), window_strides, dilation, groups)


@contextlib.contextmanager
def fast_convolutions(enabled: bool | None = None, platform: str | None = None) -> Iterator[None]:
    """Within this context, every ``nn.Conv`` of any linen module computes by `conv_general_dilated` above.

    It acts while a function is traced, so it belongs inside the function that is jitted or differentiated. Modules that
    bring a convolution of their own (``nn.Conv(conv_general_dilated=...)``) keep it. Forward-mode differentiation does
    not work inside.

    Args:
      enabled: None means "where it is faster": on CPUs; GPUs and TPUs keep XLA's convolution.
      platform: of the devices that the program is for: "cpu", "gpu" or "tpu"; None means jax's default backend.
    """
    if enabled is None:
        enabled = (platform or jax.default_backend()) == "cpu"
    if not enabled:
        yield
        return

    def intercept(
        next_method: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext
    ) -> Any:
        module = context.module
        own = not isinstance(module, nn.Conv) or module.conv_general_dilated or module.conv_general_dilated_cls
        if own or context.method_name != "__call__":
            return next_method(*args, **kwargs)
        # Bound linen modules are frozen, but copies made for this trace; the field is put back all the same.
        object.__setattr__(module, "conv_general_dilated", conv_general_dilated)
        try:
            return next_method(*args, **kwargs)
        finally:
            object.__setattr__(module, "conv_general_dilated", None)

    with nn.intercept_methods(intercept):
        yield
