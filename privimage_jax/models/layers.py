"""A convolution whose gradients are fast inside compiled loops, and the switch that puts it into unmodified models.

XLA's CPU back end computes the weight gradient of a convolution inside a ``while`` loop without its fast library path
(tens of times slower), and every microbatch loop is one. `conv2d` states its own derivatives instead: with respect to
the input, a forward convolution with the flipped, transposed kernel; with respect to the kernel, one matrix product per
kernel offset over all (example, row, column) positions. Under ``vmap`` with a shared kernel the former stay one
convolution and the latter become batched products, where XLA would make a grouped convolution.
"""

import contextlib
import functools
from collections.abc import Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

Padding = tuple[tuple[int, int], tuple[int, int]]
NHWC = ("NHWC", "HWIO", "NHWC")


def conv2d(
    x: jax.Array,
    kernel: jax.Array,
    padding: Padding,
    precision: lax.PrecisionLike = None,
    strides: tuple[int, int] = (1, 1),
) -> jax.Array:
    """Convolution, for reverse-mode differentiation only.

    Args:
      x: [B,H,W,I], float32 or bfloat16.
      kernel: [h,w,I,O], of the same dtype.
      padding: zeros (before, after) along height and width, each at most the kernel's side minus 1.
      precision: of the forward and of both gradient products.
      strides: along height and width.

    Returns:
      [B,H',W',O] in the dtype of ``x``. The kernel's gradient is accumulated in float32.
    """
    # Inside shard_map a kernel that is equal on all devices must be marked as varying like x: the mark's transpose then
    # sums the kernel's gradient over the devices, as for JAX's own operations.
    if missing := tuple(_varying_axes(x) - _varying_axes(kernel)):
        kernel = lax.pcast(kernel, missing, to="varying")
    if missing := tuple(_varying_axes(kernel) - _varying_axes(x)):
        x = lax.pcast(x, missing, to="varying")
    return _conv2d(x, kernel, padding, precision, strides)


def _varying_axes(x: jax.Array) -> frozenset[str]:
    """The mesh axes of an enclosing shard_map along which ``x`` differs."""
    aval = jax.typeof(x)
    manual = getattr(aval, "manual_axis_type", None)  # named `vma` in some of the JAX versions that we support
    return aval.vma if manual is None else manual.varying


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _conv2d(x, kernel, padding, precision, strides):
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=NHWC, precision=precision)


def _forward(x, kernel, padding, precision, strides):
    return _conv2d(x, kernel, padding, precision, strides), (x, kernel)


def _backward(padding, precision, strides, residuals, dy):
    x, kernel = residuals
    height, width, n_in, n_out = kernel.shape
    (top, bottom), (left, right) = padding
    padded = jnp.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))

    flipped = kernel[::-1, ::-1].swapaxes(2, 3)
    mirrored = ((height - 1 - top, height - 1 - bottom), (width - 1 - left, width - 1 - right))
    dense = _undo_strides(dy, strides, (padded.shape[1] - height + 1, padded.shape[2] - width + 1))
    dx = lax.conv_general_dilated(dense, flipped, (1, 1), mirrored, dimension_numbers=NHWC, precision=precision)

    dy_rows = dy.reshape(-1, n_out)
    down, across = (stride * (side - 1) + 1 for stride, side in zip(strides, dy.shape[1:3], strict=True))

    def at_offset(i, j):
        rows = padded[:, i : i + down : strides[0], j : j + across : strides[1]].reshape(-1, n_in)
        return jnp.matmul(rows.T, dy_rows, precision=precision, preferred_element_type=jnp.float32)

    dkernel = jnp.stack([at_offset(i, j) for i in range(height) for j in range(width)])
    return dx, dkernel.reshape(kernel.shape).astype(kernel.dtype)


def _undo_strides(dy: jax.Array, strides: tuple[int, int], size: tuple[int, int]) -> jax.Array:
    """The output gradient as the convolution of stride 1 would have it: zeros where strides left positions out."""
    if strides == (1, 1):
        return dy
    after = [side - stride * (n - 1) - 1 for side, stride, n in zip(size, strides, dy.shape[1:3], strict=True)]
    edges = [(0, 0, 0), *((0, rest, stride - 1) for rest, stride in zip(after, strides, strict=True)), (0, 0, 0)]
    return lax.pad(dy, jnp.zeros((), dy.dtype), edges)


_conv2d.defvjp(_forward, _backward)


def _explicit_padding(padding, size, kernel_size, strides) -> Padding | None:
    """Zeros (before, after) along each side; None for a padding that `conv2d` does not do."""
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(size, kernel_size, strides, padding)
    pairs = tuple((int(before), int(after)) for before, after in padding)
    within = all(0 <= p < k for pair, k in zip(pairs, kernel_size, strict=True) for p in pair)
    return pairs if within else None


def conv_general_dilated(
    lhs, rhs, window_strides, padding, lhs_dilation=None, rhs_dilation=None, dimension_numbers=None, **options
) -> jax.Array:
    """`jax.lax.conv_general_dilated`, by `conv2d` where that is possible; for ``nn.Conv``'s field of this name.

    Dilated, grouped and non-2-D convolutions, and other memory layouts, go to XLA.
    """
    ones = (None, (1, 1), [1, 1])
    options = {"precision": None, **options}
    plain = (
        rhs.ndim == 4
        and lhs_dilation in ones
        and rhs_dilation in ones
        and lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
        == lax.conv_dimension_numbers(lhs.shape, rhs.shape, NHWC)
        and lhs.dtype == rhs.dtype
        and lhs.shape[-1] == rhs.shape[2]
        and all(options[name] in (None, 1) for name in options if name != "precision")
    )
    strides = tuple(window_strides)
    pairs = _explicit_padding(padding, lhs.shape[1:3], rhs.shape[:2], strides) if plain else None
    if pairs is not None:
        return conv2d(lhs, rhs, pairs, options["precision"], strides)
    return lax.conv_general_dilated(
        lhs, rhs, window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers, **options
    )


@contextlib.contextmanager
def fast_convolutions(enabled: bool | None = None) -> Iterator[None]:
    """Within this context, every ``nn.Conv`` of any linen module computes by `conv_general_dilated` above.

    It acts while a function is traced, so it belongs inside the function that is jitted or differentiated. Modules that
    bring a convolution of their own (``nn.Conv(conv_general_dilated=...)``) keep it. Forward-mode differentiation does
    not work inside.

    Args:
      enabled: None means "where it is faster": on CPUs; GPUs and TPUs keep XLA's convolution.
    """
    if enabled is None:
        enabled = jax.default_backend() == "cpu"
    if not enabled:
        yield
        return

    def intercept(next_method, args, kwargs, context):
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
