"""Convolutions on the CPU whose weights lie as oneDNN's kernels read them, with ReLU in the same pass.

In eager mode torch lays the weights of every convolution out anew in each forward pass, which takes a fifth of the time
of a single picture. The operators used here are the ones that torch's compiler writes when it freezes a network. They
are private to torch: they are tried once, and where they are missing or compute something else, nothing here applies.
"""

from __future__ import annotations

import functools
import platform
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, dtype, nn


def type_for(x: Tensor, convolution: nn.Conv2d) -> dtype | None:
    """The type in which these operators take `x` and the weights of `convolution`; None where they do not apply.

    They apply to channels-last batches on the CPU in float32 or bfloat16 (by autocast too), outside of compilation and
    tracing, where no gradient is wanted and nobody looks at the operators (as torch's FLOP counter does).
    """
    import torch

    if type(x) is not torch.Tensor or x.device.type != "cpu" or torch.compiler.is_compiling():
        return None
    if torch.is_grad_enabled() and (x.requires_grad or convolution.weight.requires_grad):
        return None
    autocast = torch.is_autocast_enabled("cpu")
    kind = torch.get_autocast_dtype("cpu") if autocast else x.dtype
    given = {x.dtype, convolution.weight.dtype}
    if not given | {kind} <= _types() or not (autocast or given == {kind}):
        return None
    if not torch.backends.mkldnn.enabled or torch.jit.is_tracing() or not x.numel():
        return None
    if torch._C._len_torch_function_stack() or torch._C._len_torch_dispatch_stack():
        return None
    # A map of one pixel is contiguous in either format: its strides say which one is meant.
    channels_last = x.is_contiguous(memory_format=torch.channels_last) and x.stride(3) == x.shape[1]
    return kind if channels_last else None


@functools.cache
def _types() -> frozenset[dtype]:
    import torch

    if not torch.backends.mkldnn.is_available():
        return frozenset()
    return frozenset(kind for kind in (torch.float32, torch.bfloat16) if _computes(kind))


def _computes(kind: dtype) -> bool:
    """Whether this torch's operators give a convolution with ReLU in type `kind`, with native kernels."""
    import torch

    try:
        # On Arm ReLU is not part of the operator; emulated bfloat16 is slower than float32.
        if torch.ops.mkldnn._is_mkldnn_acl_supported():
            return False
        if kind is torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        with torch.no_grad():
            convolution = torch.nn.Conv2d(16, 16, 3, padding=1, device="meta").to_empty(device="cpu")
            for number, parameter in enumerate(convolution.parameters()):
                parameter.copy_(torch.linspace(-1, 1, parameter.numel()).sin().view_as(parameter) + 0.1 * number)
            x = torch.linspace(-1, 1, 16 * 25).cos().view(1, 16, 5, 5).contiguous(memory_format=torch.channels_last)
            expected = convolution(x).relu()
            found = convolve(convolution, x.to(kind), *lay_out(convolution, kind, tuple(x.shape)), relu=True)
    except (AttributeError, RuntimeError, TypeError):  # another torch: no such operator, or with other arguments
        return False
    return bool((found.float() - expected).norm() < 0.02 * expected.norm())


def lay_out(convolution: nn.Conv2d, kind: dtype, shape: tuple[int, ...]) -> tuple[Tensor, Tensor | None]:
    """Weight and bias in type `kind`, for batches of `shape` [B, C, H, W]. Other batches can be slow with them."""
    import torch

    weight = torch.ops.mkldnn._reorder_convolution_weight(
        convolution.weight.detach().to(kind), *_settings(convolution), list(shape)
    )
    return weight, None if convolution.bias is None else convolution.bias.detach().to(kind)


def convolve(convolution: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None, *, relu: bool) -> Tensor:
    """`convolution` of `x` [B, C, H, W] with what `lay_out` returned."""
    import torch

    activation = "relu" if relu else "none"
    result: Tensor = torch.ops.mkldnn._convolution_pointwise(
        x, weight, bias, *_settings(convolution), activation, [], ""
    )
    return result


def multiplies_bf16() -> bool:
    """Whether the processor has instructions for it. With AVX-512 alone oneDNN takes it, and computes in float32."""
    import torch

    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _settings(convolution: nn.Conv2d) -> tuple[list[int], list[int], list[int], int]:
    padding = convolution.padding
    assert not isinstance(padding, str)
    return list(padding), list(convolution.stride), list(convolution.dilation), convolution.groups
