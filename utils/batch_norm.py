"""Batch norm over the batches of all ranks on any device, where torch's own (SyncBatchNorm) needs CUDA; and
none of it, where weights are only run."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval


class SharedBatchNorm(_BatchNorm):
    """Batch norm [B, C, ...] whose statistics are those of the ranks' batches together.

    In training, what one process makes of the whole batch: output, gradients and running statistics are the
    same but for rounding. In evaluation mode, and under the same keys of its state, the norm that it stands
    for. Every rank has to come by with at least one value a channel.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"batch norm of {tuple(input.shape)}: expected [B, C, ...]")

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        if not self.training and self.running_mean is not None:
            return super().forward(input)
        mean, variance, count = _global_statistics(input.detach())
        if self.training and self.running_mean is not None:
            self._follow(mean, variance * (count / (count - 1).clamp_min(1)))
        output: Tensor = _Normalize.apply(input, self.weight, self.bias, mean, variance, count, self.eps)
        return output

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Running statistics towards this mean and this unbiased variance [C]."""
        assert self.running_mean is not None and self.running_var is not None
        share = self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if share is None:  # the plain average of all batches
                share = 1.0 / float(self.num_batches_tracked)
        assert share is not None
        self.running_mean.lerp_(mean.to(self.running_mean), share)
        self.running_var.lerp_(variance.to(self.running_var), share)


def share_batch_norms(module: nn.Module) -> nn.Module:
    """The module with a SharedBatchNorm, of the same parameters and buffers, for every batch norm in it."""
    if isinstance(module, _BatchNorm):
        shared = SharedBatchNorm(
            module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats
        )
        shared.train(module.training)
        for kind in ("_parameters", "_buffers"):  # the tensors themselves: an optimiser may know them
            getattr(shared, kind).update(getattr(module, kind))
        return shared
    for name, child in module.named_children():
        setattr(module, name, share_batch_norms(child))
    return module


def _axes(values: Tensor) -> list[int]:
    return [axis for axis in range(values.ndim) if axis != 1]


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    """[C] -> [1, C, 1, ...]"""
    return values.reshape(1, -1, *[1] * (like.ndim - 2))


def _global_statistics(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and (biased) variance of every channel [C] in float64 and the number of values, of all ranks.

    Every rank's own mean and squares about it are put together (Chan, Golub and LeVeque 1979), because the
    plain sum of squares loses digits where the mean is large.
    """
    variance, mean = torch.var_mean(values.float(), _axes(values), correction=0)
    count = torch.tensor([values.numel() // values.shape[1]], dtype=torch.float64, device=values.device)
    own = torch.cat([mean.double(), variance.double(), count])
    rows = [own]
    if torch.distributed.is_initialized():
        rows = [torch.empty_like(own) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(rows, own)
    found = torch.stack(rows)
    means, variances, counts = found[:, : len(mean)], found[:, len(mean) : -1], found[:, -1:]
    total = counts.sum()
    together = (counts * means).sum(0) / total
    spread = (counts * (variances + (means - together).square())).sum(0) / total
    return together, spread, total


class _Normalize(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias, whose gradient knows that mean and variance are
    those of the inputs of all ranks."""

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        variance: Tensor,
        count: Tensor,
        eps: float,
    ) -> Tensor:
        mean, variance = mean.float(), variance.float()
        ctx.save_for_backward(values, weight, mean, variance, count)
        ctx.eps = eps
        return nn.functional.batch_norm(values, mean, variance, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        values, weight, mean, variance, count = ctx.saved_tensors
        slope = (variance + ctx.eps).rsqrt()
        outer = gradients[0].float()
        centred = (values.float() - _per_channel(mean, values)) * _per_channel(slope, values)
        own_bias, own_weight = outer.sum(_axes(values)), (outer * centred).sum(_axes(values))
        sums = torch.stack([own_bias, own_weight])
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
        of_bias, of_weight = (sums / count).float().unbind()
        inner = outer - _per_channel(of_bias, values) - centred * _per_channel(of_weight, values)
        scale = slope if weight is None else slope * weight.float()
        found = (inner * _per_channel(scale, values)).to(values.dtype)
        if weight is None:
            return found, None, None, None, None, None, None
        # their own share alone: gradients of parameters are added up by DistributedDataParallel
        return found, own_weight.to(weight.dtype), own_bias.to(weight.dtype), None, None, None, None


def fold_batch_norms(module: nn.Module) -> None:
    """Puts batch norms behind convolutions of a sequence into the convolutions' weights, for inference.

    The same function but for rounding, without a pass over memory for each. Weights and their names change,
    so it is for modules that are only run. Raises ValueError in training mode.
    """
    if module.training:
        raise ValueError("batch norms follow their batches in training: call eval() first")
    for part in list(module.modules()):
        if not isinstance(part, nn.Sequential):
            continue
        for i, (first, second) in enumerate(pairwise(part)):
            if type(first) is nn.Conv2d and isinstance(second, nn.BatchNorm2d):
                part[i], part[i + 1] = fuse_conv_bn_eval(first, second), nn.Identity()
