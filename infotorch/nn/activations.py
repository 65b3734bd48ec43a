r"""CRReLU: ReLU plus a learnable bump that an entropy argument suggests.

.. math:: \mathrm{CRReLU}(x) = \max(0, x) + \epsilon\, x\, e^{-x^2/2}

with one learnable :math:`\epsilon` per module. It is increasing on :math:`x > 0` for
:math:`-1 \le \epsilon \le 2.24`; below 0 it dips, as GELU and SiLU do, to :math:`-0.61\,\epsilon`.

Reference: H. Sun et al., "A method on searching better activation functions", 2024, arXiv:2405.12954. There is no code
of the authors to compare with.

The derivation is in :mod:`infotorch.nn.eafo`. It favors :math:`\epsilon < 0` (which lowers the entropy of the output),
while the published start is 0.01; the sign is learned in the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from infotorch.core._checks import check_tensor, is_traced

_FLAT = 40.0  # beyond, exp(-x^2/2) is 0 even in float64, and x = inf would give inf * 0
_EXPONENT = -0.5 / math.log(2)  # exp(-x^2/2) as a power of 2, which PyTorch raises four times as fast on a CPU
_CHUNK = 1 << 16  # numbers that stay in a core's cache with their temporaries; PyTorch gives a thread no fewer


def _chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors of one shape, piece by piece where that saves passes over memory."""
    first = tensors[0]
    if first.device.type != "cpu":
        yield tensors
        return
    order = sorted(range(first.ndim), key=lambda dim: -first.stride(dim))  # channels last are as good as contiguous
    rows = [t.permute(order) for t in tensors]
    size = _CHUNK * torch.get_num_threads()
    if first.numel() <= size or not all(t.is_contiguous() for t in rows):
        yield tensors
    else:
        yield from zip(*(t.view(-1).split(size) for t in rows), strict=True)


class _Room:
    """Float32 (or wider) memory of a piece's shape, the same for all pieces: fresh pages cost as much as a pass."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    def __call__(self, name: str, piece: Tensor) -> Tensor:
        found = self.tensors.get(name)
        if found is None:
            wide = torch.promote_types(piece.dtype, torch.float32)
            found = self.tensors[name] = torch.empty_like(piece, dtype=wide)
        return found if found.shape == piece.shape else found[: len(piece)]  # the last piece is shorter

    def single(self, name: str, piece: Tensor) -> Tensor:
        """The piece, in float32 if it is in half precision."""
        return self(name, piece).copy_(piece) if piece.dtype.itemsize < 4 else piece


def _number(epsilon: Tensor, x: Tensor) -> float | Tensor:
    """A number where reading it is free, which saves a pass; elsewhere the device would be waited for."""
    if epsilon.numel() == 1 and epsilon.device.type == "cpu":
        return epsilon.item()
    return epsilon.to(torch.promote_types(x.dtype, torch.float32))


def _add_product(total: Tensor, a: Tensor, b: Tensor, size: float | Tensor) -> None:
    """``total += size * a * b``; ``b`` is lost."""
    if isinstance(size, Tensor):
        total.addcmul_(a, b.mul_(size))
    else:
        total.addcmul_(a, b, value=size)


class _CRReLU(torch.autograd.Function):
    """Saves x alone; half precision is computed in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, epsilon: Tensor) -> Tensor:
        ctx.save_for_backward(x, epsilon)
        y, room = torch.empty_like(x), _Room()
        size, zero = _number(epsilon, x), epsilon.new_zeros(())
        for piece, out in _chunks(x, y) if epsilon.numel() == 1 else [(x, y)]:
            work = room.single("work", piece)
            z = torch.clamp(work, -_FLAT, _FLAT, out=room("z", piece))
            gauss = torch.addcmul(zero, z, z, value=_EXPONENT, out=room("gauss", piece)).exp2_()
            found = torch.clamp_min(work, 0, out=out if work is piece else work)
            _add_product(found, z, gauss, size)
            if found is not out:
                out.copy_(found)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (upstream,) = gradients
        x, epsilon = ctx.saved_tensors
        if epsilon.numel() > 1 or torch.is_grad_enabled():  # a second derivative wants the graph
            return _slopes(ctx, x, epsilon, upstream)
        grad_x, room = torch.empty_like(x) if ctx.needs_input_grad[0] else None, _Room()
        size, zero, one = _number(epsilon, x), epsilon.new_zeros(()), epsilon.new_ones(())
        total = torch.zeros_like(epsilon, dtype=torch.promote_types(epsilon.dtype, torch.float32))
        wanted = ctx.needs_input_grad[1]
        for piece, gradient, *outs in _chunks(x, upstream, *([] if grad_x is None else [grad_x])):
            work, g = room.single("work", piece), room.single("g", gradient)
            z = torch.clamp(work, -_FLAT, _FLAT, out=room("z", piece))
            weight = torch.addcmul(zero, z, z, value=_EXPONENT, out=room("weight", piece)).exp2_().mul_(g)
            if wanted:
                total += torch.dot(weight.reshape(-1), z.reshape(-1)).to(total.dtype)
            for out in outs:
                found = out if g is gradient else g
                torch.ops.aten.threshold_backward(g, work, 0, grad_input=found)
                _add_product(found, torch.addcmul(one, z, z, value=-1, out=z), weight, size)
                if found is not out:
                    out.copy_(found)
        return grad_x, total.to(epsilon.dtype) if wanted else None


def _slopes(ctx: Any, x: Tensor, epsilon: Tensor, upstream: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Gradients that can be differentiated again."""
    wide = torch.promote_types(x.dtype, torch.float32)
    work, g = x.to(wide), upstream.to(wide)
    z = work.clamp(-_FLAT, _FLAT)
    gauss = (z * z * -0.5).exp()
    grad_x = grad_epsilon = None
    if ctx.needs_input_grad[0]:
        grad_x = (g * ((1 - z * z) * gauss * epsilon.to(work.dtype) + (work > 0))).to(x.dtype)
    if ctx.needs_input_grad[1]:
        grad_epsilon = (g * z * gauss).sum_to_size(epsilon.shape).to(epsilon.dtype)
    return grad_x, grad_epsilon


def _formula(x: Tensor, epsilon: Tensor) -> Tensor:
    """The same in single operations, for compilers, which fuse them, and for function transforms."""
    work = x.to(torch.promote_types(x.dtype, torch.float32))
    z = work.clamp(-_FLAT, _FLAT)
    return (torch.relu(work) + epsilon.to(work.dtype) * z * (z * z * _EXPONENT).exp2()).to(x.dtype)


def crrelu(x: Tensor, epsilon: Tensor | float = 0.01) -> Tensor:
    r""":math:`\max(0, x) + \epsilon\, x\, e^{-x^2/2}`, forward and backward in one step that keeps ``x`` alone.

    Args:
        x: Any shape, floating. Infinities give ReLU's values, NaN stays NaN.
        epsilon: A number, or a tensor that broadcasts to ``x``.

    Returns:
        Shape and dtype of ``x``; half precision is computed in float32. The derivative at 0 is ``epsilon``.

    Raises:
        TypeError: ``x`` is no floating tensor.

    Reference: H. Sun et al., 2024, arXiv:2405.12954.

    >>> crrelu(torch.tensor([-1.0, 0.0, 1.0]), 0.1)
    tensor([-0.0607,  0.0000,  1.0607])
    """
    if not check_tensor("x", x).is_floating_point():
        raise TypeError(f"x: expected a floating-point tensor, got {x.dtype}")
    if not isinstance(epsilon, Tensor):
        epsilon = torch.tensor(epsilon, dtype=torch.float32 if x.dtype.itemsize < 4 else x.dtype, device=x.device)
    if is_traced():
        return _formula(x, epsilon)
    return _CRReLU.apply(x, epsilon)


class CRReLU(nn.Module):
    """`crrelu` with a learnable size of its bump; goes wherever an ``act_layer`` class is asked for.

    Keep ``epsilon`` out of weight decay, as biases: it has no more than one dimension, by which most code tells them.

    Args:
        inplace: Taken for the sake of code that passes it to every activation. The input is needed for the gradient, so
            it is overwritten only where none is recorded.
        epsilon: Start.
        learnable: False keeps it there, as a buffer.
        num_parameters: 1 for one number, or the number of channels for one each.
        channel_dim: Where the channels are, if there is more than one parameter.

    Raises:
        ValueError: ``epsilon`` is not finite, ``num_parameters`` below 1; in use, other channels than parameters.

    Reference: H. Sun et al., 2024, arXiv:2405.12954.

    >>> layer = CRReLU()
    >>> layer(torch.tensor([-1.0, 1.0])), layer.epsilon.item()
    (tensor([-0.0061,  1.0061], grad_fn=<_CRReLUBackward>), 0.009999999776482582)
    """

    epsilon: Tensor

    def __init__(
        self,
        inplace: bool = False,
        *,
        epsilon: float = 0.01,
        learnable: bool = True,
        num_parameters: int = 1,
        channel_dim: int = 1,
    ) -> None:
        super().__init__()
        if not math.isfinite(epsilon):
            raise ValueError(f"epsilon: expected a finite number, got {epsilon}")
        if num_parameters < 1:
            raise ValueError(f"num_parameters: expected at least 1, got {num_parameters}")
        self.inplace, self.num_parameters, self.channel_dim = inplace, num_parameters, channel_dim
        start = torch.full(() if num_parameters == 1 else (num_parameters,), float(epsilon))
        if learnable:
            self.epsilon = nn.Parameter(start)
        else:
            self.register_buffer("epsilon", start)

    def forward(self, x: Tensor) -> Tensor:
        """Activate."""
        epsilon = self.epsilon
        if self.num_parameters > 1:
            if x.ndim <= self.channel_dim or x.shape[self.channel_dim] != self.num_parameters:
                raise ValueError(
                    f"x: expected {self.num_parameters} channels in dimension {self.channel_dim}, "
                    f"got shape {tuple(x.shape)}"
                )
            dim = self.channel_dim % x.ndim
            epsilon = epsilon.view([-1 if i == dim else 1 for i in range(x.ndim)])
        y = crrelu(x, epsilon)
        recorded = torch.is_grad_enabled() and y.requires_grad
        return x.copy_(y) if self.inplace and not recorded else y

    def extra_repr(self) -> str:
        """What is not in the parameters."""
        start = f"epsilon={self.epsilon.tolist():.4g}" if self.num_parameters == 1 else f"{self.num_parameters}"
        return start if isinstance(self.epsilon, nn.Parameter) else f"{start}, learnable=False"


def convert_activations(
    model: nn.Module, new: Mapping[type[nn.Module], Callable[[], nn.Module]]
) -> dict[str, nn.Module]:
    """Replace activations in a model, which may be trained, in place.

    Args:
        model: Any module.
        new: What each class (not its subclasses) is replaced by: something that makes a new module each time.

    Returns:
        The new modules by name.

    Raises:
        ValueError: There is nothing to replace.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.GELU())
    >>> list(convert_activations(model, {nn.GELU: CRReLU}))
    ['1']
    """
    found: dict[str, nn.Module] = {}
    made: dict[nn.Module, nn.Module] = {}  # a module that stands in several places stays one
    like = next(model.parameters(), None)
    for name, module in list(model.named_modules(remove_duplicate=False)):
        for child, old in list(module._modules.items()):
            if old is not None and type(old) in new:
                if old not in made:
                    fresh = new[type(old)]().train(old.training)
                    made[old] = fresh if like is None else fresh.to(like.device)
                setattr(module, child, made[old])
                found[f"{name}.{child}" if name else child] = made[old]
    if not found:
        asked = ", ".join(kind.__name__ for kind in new)
        raise ValueError(f"new: expected classes that the model has, got {asked}, and it has none of them")
    return found
