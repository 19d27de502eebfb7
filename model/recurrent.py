"""An LSTM layer whose input is partly the same in every frame, fast on a CPU."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from utils.device import has_fast_bf16

CPU_HAS_BF16 = has_fast_bf16(torch.device("cpu"))
"""Without it oneDNN has no LSTM in bfloat16 either, and one that autocast hands it fails."""
FEW_FRAMES = 4
"""Up to so many at once PyTorch's LSTM spends its time on the layout of its weights."""


def call_lstm(
    lstm: nn.LSTM, x: Tensor, state: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """What `lstm` makes of x after a state (None: the first), and the state after that.

    Under autocast it is computed in float32 on CUDA, where it would be float16 whatever was asked for, whose
    gradients would vanish without a scaled loss; and on a CPU without bfloat16, where it would fail.
    """
    in_float32 = x.is_cuda or (
        x.device.type == "cpu" and not CPU_HAS_BF16 and torch.is_autocast_enabled("cpu")
    )
    if in_float32:
        x = x.float()
    if state is not None:
        state = (state[0].to(x.dtype), state[1].to(x.dtype))
    with torch.autocast(x.device.type, enabled=False) if in_float32 else nullcontext():
        y, left = lstm(x, state)
    return y, left


def runs_on_cpu(x: Tensor) -> bool:
    """Whether it is only run there, without gradients, and nothing is traced."""
    tracing = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return x.device.type == "cpu" and not torch.is_grad_enabled() and not tracing


def lstm_in_steps(
    lstm: nn.LSTM, x: Tensor, state: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """What a unidirectional `lstm`, batch first, makes of a few frames x [B, T, I] after the hidden and cell
    `state` [layers, B, H] (None: the first): [B, T, H] and the state after them, in float32.

    A frame at a time oneDNN would reorder all weights for every call, which takes longer than the products.
    """
    with torch.autocast(x.device.type, enabled=False):
        zeros = x.new_zeros(lstm.num_layers, len(x), lstm.hidden_size, dtype=torch.float32)
        hidden, cell = ([*part.float()] for part in (state or (zeros, zeros)))
        outputs = []
        for frame in x.float().unbind(1):
            for layer in range(lstm.num_layers):
                weights = [
                    getattr(lstm, f"{name}_l{layer}")
                    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
                ]
                gates = nn.functional.linear(frame, weights[0], weights[2])
                gates = gates + nn.functional.linear(hidden[layer], weights[1], weights[3])
                i, f, g, o = gates.chunk(4, dim=1)
                cell[layer] = torch.sigmoid(f) * cell[layer] + torch.sigmoid(i) * torch.tanh(g)
                frame = hidden[layer] = torch.sigmoid(o) * torch.tanh(cell[layer])
            outputs.append(frame)
        return torch.stack(outputs, dim=1), (torch.stack(hidden), torch.stack(cell))


def run_lstm(
    lstm: nn.LSTM, x: Tensor, state: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """What a unidirectional `lstm`, batch first, makes of x [B, T, I] after a state, in the faster way; a few
    frames at a time the state stays in float32."""
    if x.shape[1] <= FEW_FRAMES and runs_on_cpu(x):
        return lstm_in_steps(lstm, x, state)
    return call_lstm(lstm, x, state)


def learns_on_cpu(x: Tensor) -> bool:
    """Whether gradients are wanted and nothing is traced: a compiler would unroll the steps."""
    tracing = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return x.device.type == "cpu" and torch.is_grad_enabled() and not tracing


def lstm_with_constant(lstm: nn.LSTM, x: Tensor, constant: Tensor | None) -> Tensor:
    """What `lstm`, of one layer and batch first, makes of x [B, T, I] beside `constant` [B, D] in every
    frame: [B, T, H], or [B, T, 2H] of both directions.

    The constant's part of the gates is computed once an example, the input's as one matrix product, and only
    the recurrent part step by step, both directions together. On a CPU this is three times as fast as
    PyTorch's own layer, above all backwards (docs/experiments.md).
    """
    directions = ("", "_reverse") if lstm.bidirectional else ("",)

    def stacked(name: str) -> Tensor:
        return torch.stack([getattr(lstm, f"{name}_l0{direction}") for direction in directions])

    weight, recurrent = stacked("weight_ih"), stacked("weight_hh")  # [K, 4H, I + D], [K, 4H, H]
    offset = (stacked("bias_ih") + stacked("bias_hh"))[:, None]  # [K, 1, 4H]
    if constant is not None:
        offset = offset + constant.to(x.dtype) @ weight[..., x.shape[2] :].transpose(1, 2)  # [K, B, 4H]
    joined = weight[..., : x.shape[2]].flatten(0, 1)  # [K * 4H, I]
    gates = nn.functional.linear(x, joined).unflatten(-1, (len(directions), -1))  # [B, T, K, 4H]
    gates = gates.permute(1, 2, 0, 3)  # [T, K, B, 4H]
    if lstm.bidirectional:  # the second direction begins at the end
        gates = torch.stack([gates[:, 0], gates[:, 1].flip(0)], dim=1)
    with torch.autocast(x.device.type, enabled=False):
        hidden: Tensor = _Recurrence.apply(gates + offset.to(gates.dtype), recurrent.to(gates.dtype))
    if lstm.bidirectional:
        hidden = torch.stack([hidden[:, 0], hidden[:, 1].flip(0)], dim=1)
    return hidden.permute(2, 0, 1, 3).flatten(2)  # [B, T, K*H]


class _Recurrence(torch.autograd.Function):
    """Gates [T, K, B, 4H] without their recurrent part, weights [K, 4H, H] -> hidden [T, K, B, H].

    The order of the gates is PyTorch's: input, forget, cell, output. Cells are kept in float32.
    """

    @staticmethod
    def forward(ctx: Any, gates: Tensor, weight: Tensor) -> Tensor:
        frames, directions, batch, width = gates.shape
        size, dtype = width // 4, gates.dtype
        turned = weight.transpose(1, 2).contiguous()  # [K, H, 4H]
        active = torch.empty(gates.shape, dtype=torch.float32, device=gates.device)
        cells = torch.zeros(frames + 1, directions, batch, size, device=gates.device)
        hidden = torch.zeros(frames + 1, directions, batch, size, dtype=dtype, device=gates.device)
        for t in range(frames):
            z, a = torch.baddbmm(gates[t], hidden[t], turned).float(), active[t]
            torch.sigmoid(z, out=a)
            torch.tanh(z[..., 2 * size : 3 * size], out=a[..., 2 * size : 3 * size])
            i, f, g, o = a.split(size, dim=-1)
            cell = torch.mul(f, cells[t], out=cells[t + 1]).addcmul_(i, g)
            hidden[t + 1] = o * torch.tanh(cell)
        ctx.save_for_backward(active, cells, hidden, weight)
        return hidden[1:]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (outer,) = gradients
        active, cells, hidden, weight = ctx.saved_tensors
        frames, size, dtype = len(active), cells.shape[-1], hidden.dtype
        # what does not depend on later frames, for all frames at once
        i, f, g, o = active.split(size, dim=-1)
        tanh = torch.tanh(cells[1:])
        to_output = tanh * o * (1 - o)
        to_cell = o * (1 - tanh * tanh)
        slopes = torch.cat(
            [g * i * (1 - i), cells[:-1] * f * (1 - f), i * (1 - g * g)], dim=-1
        )  # of the cell with respect to the first three gates
        outer = outer.float()
        d_gates = torch.empty_like(active, dtype=dtype)
        d_hidden, d_cell = torch.zeros_like(outer[0]), torch.zeros_like(cells[0])
        for t in reversed(range(frames)):
            d_hidden = d_hidden + outer[t]
            d_cell = d_cell.addcmul(d_hidden, to_cell[t])
            step = torch.cat([slopes[t] * d_cell.repeat(1, 1, 3), d_hidden * to_output[t]], dim=-1)
            d_gates[t] = step
            d_cell = d_cell * f[t]
            d_hidden = torch.bmm(d_gates[t], weight).float()
        flat = d_gates.transpose(0, 1).flatten(1, 2)  # [K, T*B, 4H]
        before = hidden[:-1].transpose(0, 1).flatten(1, 2)  # [K, T*B, H]
        return d_gates, torch.bmm(flat.transpose(1, 2), before)
