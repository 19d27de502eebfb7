"""Mask networks, what is done with their masks, and the stream: relations that must hold with any weights."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from config.load import check_config, load_config
from model import band_split, film_blstm, layers, recurrent, voicefilter
from model.band_split import BandSplit, band_widths
from model.blind_blstm import BlindBlstm
from model.dvector import DVector
from model.ensemble import Ensemble
from model.film_blstm import FilmBlstm
from model.lite import Lite
from model.mask_network import MaskNetwork
from model.masks import MASK_FLOOR, Masking
from model.recurrent import call_lstm, lstm_in_steps, lstm_with_constant
from model.separator import Separator, build_network
from model.spectral import Spectral, from_db, to_db
from model.streaming import StreamingSeparator
from model.unet import UNet
from model.voicefilter import LAYERS, PartialConv2d, VoiceFilter
from utils.batch_norm import fold_batch_norms
from utils.errors import UserError

BINS, DIM, FRAMES = 33, 19, 11  # a dimension that no layer has
SMALL_FILTER = {"channels": 4, "lstm_dim": 6, "fc1_dim": 7}
LISTENING = {"front": "linear", "front_dim": 7, "injection": "film", "level_frames": 5}


def two_together(bins: int, dim: int, mask: Any = "sigmoid", **options: Any) -> Ensemble:
    first = FilmBlstm(bins, dim, mask=mask, front_dim=8, lstm_dim=8, stack=3, **options)
    second = BandSplit(bins, dim, mask=mask, dim=6, lstm_dim=5, blocks=1, stack=2, **options)
    return Ensemble(bins, dim, [first, second], mask=mask)


KINDS: dict[str, tuple[Callable[..., MaskNetwork], dict[str, Any]]] = {
    "voicefilter": (VoiceFilter, SMALL_FILTER),
    "voicefilter unidirectional": (VoiceFilter, {**SMALL_FILTER, "lstm": "unidirectional"}),
    "voicefilter without lstm": (VoiceFilter, {**SMALL_FILTER, "lstm": "none", "activation": "mish"}),
    "voicefilter partial": (VoiceFilter, {**SMALL_FILTER, "partial_convolution": True}),
    "film_blstm": (FilmBlstm, {"front_dim": 8, "lstm_dim": 8}),
    "film_blstm stacked": (FilmBlstm, {"front_dim": 8, "lstm_dim": 8, "stack": 2, "level_frames": 5}),
    "film_blstm residual": (FilmBlstm, {"front_dim": 8, "lstm_dim": 8, "residual_layers": 2}),
    "blind_blstm": (BlindBlstm, {"front_dim": 8, "lstm_dim": 8, "choice_dim": 5}),
    "blind_blstm deep": (
        BlindBlstm,
        {
            "front_dim": 8,
            "lstm_dim": 8,
            "residual_layers": 1,
            "stack": 2,
            "choice_dim": 5,
            "choice_layers": 2,
        },
    ),
    "band_split": (BandSplit, {"dim": 6, "lstm_dim": 5, "blocks": 2, "level_frames": 3}),
    "band_split whole": (
        BandSplit,
        {"dim": 6, "lstm_dim": 5, "blocks": 3, "level_frames": 3, "stack": 2, "whole_dim": 7},
    ),
    "ensemble": (two_together, {}),
    "unet": (UNet, {"channels": (4, 5, 6)}),
    "unet every second bin": (UNet, {"channels": (4, 5, 6), "bin_step": 2}),
    "lite": (Lite, {"channels": 3, "lstm_dim": 8, "noise_type_dim": 5}),
    "lite film": (Lite, {"lstm_dim": 8, "noise_type_dim": 5, **LISTENING}),
}
SCALES = [("sigmoid", scale) for scale in ("linear", "power", "log", "db")] + [
    ("complex", "linear"),
    ("complex", "power"),
]
EVERY = [
    (kind, mask, scale)
    for kind, (mask, scale) in itertools.product(KINDS, SCALES)
    if not (kind.startswith("lite") and mask == "complex")
]


def network_of(kind: str, mask: str = "sigmoid", scale: str = "linear", dim: int = DIM) -> MaskNetwork:
    torch.manual_seed(0)
    cls, options = KINDS[kind]
    network = cls(BINS, dim, mask=mask, input=scale, **options)
    for name, parameter in network.named_parameters():
        if name.startswith(network.identities):
            nn.init.normal_(parameter, std=0.3)  # as training leaves it
    return network


def mixture_of(network: MaskNetwork, batch: int = 3, frames: int = FRAMES) -> Tensor:
    shape = (batch, frames, network.bins)
    return torch.rand(shape) if network.planes == 1 else torch.randn(*shape, 2)


def stirred(network: MaskNetwork) -> MaskNetwork:
    """In evaluation mode, with batch norms as training leaves them and LSTMs that hear small changes."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.uniform_(-0.3, 0.3)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.uniform_(module.bias, -0.2, 0.2)
        if isinstance(module, nn.LSTM):
            for parameter in module.parameters():
                parameter.data.mul_(4)
    return network.eval()


# ---------------------------------------------------------------- what holds for all


@pytest.mark.parametrize(("kind", "mask", "scale"), EVERY)
def test_masks_are_in_their_range_and_follow_the_embedding(kind: str, mask: str, scale: str) -> None:
    network = network_of(kind, mask, scale).eval()
    mixture, embedding = mixture_of(network), torch.randn(3, DIM)
    out = network(mixture, embedding)
    assert out.shape == mixture.shape and out.dtype == torch.float32
    low, high = (-network.mask_bound, network.mask_bound) if mask == "complex" else (0, 1)
    assert out.min() > low and out.max() < high
    assert (network(mixture, embedding.flip(0)) - out).abs().max() > 1e-5


@pytest.mark.parametrize(("kind", "mask", "scale"), EVERY)
def test_a_network_without_a_reference_has_no_weight_for_one(kind: str, mask: str, scale: str) -> None:
    with_reference, network = (network_of(kind, mask, scale, dim).eval() for dim in (DIM, 0))
    mixture = mixture_of(network)
    assert network(mixture, None).shape == mixture.shape
    sizes = [sum(p.numel() for p in n.parameters()) for n in (with_reference, network)]
    assert sizes[1] < sizes[0]
    assert all(DIM not in p.shape for p in network.parameters())


@pytest.mark.parametrize(("kind", "mask", "scale"), EVERY)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("silent", [False, True])
def test_every_weight_has_a_finite_gradient(
    kind: str, mask: str, scale: str, precision: str, silent: bool
) -> None:
    network = network_of(kind, mask, scale).train()
    mixture = mixture_of(network) * (0 if silent else 1)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        if isinstance(network, Lite):
            out, overlap = network.mask_and_overlap(mixture, torch.randn(3, DIM))
        else:
            out, overlap = network(mixture, torch.randn(3, DIM)), torch.zeros(())
    loss = (out * torch.randn_like(out)).sum() + overlap.sum()
    assert out.dtype == torch.float32 and loss.isfinite()
    loss.backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        before_a_norm = parameter.ndim == 1 and "conv" in name  # a batch norm takes a bias out again
        assert silent or before_a_norm or parameter.grad.any(), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("frames", [1, 2, 3, 16, 17])
@pytest.mark.parametrize("bins", [16, 33, 34])
def test_any_number_of_frames_and_bins_goes(kind: str, frames: int, bins: int) -> None:
    cls, options = KINDS[kind]
    for mask in ("sigmoid",) if cls is Lite else ("sigmoid", "complex"):
        network = cls(bins, DIM, mask=mask, **options).eval()
        mixture = mixture_of(network, 2, frames)
        assert network(mixture, torch.randn(2, DIM)).shape == mixture.shape


@pytest.mark.parametrize("kind", KINDS)
def test_examples_of_a_batch_do_not_meet(kind: str) -> None:
    network = stirred(network_of(kind))
    mixture, embedding = mixture_of(network), torch.randn(3, DIM)
    alone = torch.cat([network(m[None], e[None]) for m, e in zip(mixture, embedding, strict=True)])
    torch.testing.assert_close(network(mixture, embedding), alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("mixture", "embedding"),
    [
        ((2, 9, 32), (2, DIM)),
        ((2, 9, 33, 2), (2, DIM)),
        ((9, 33), (2, DIM)),
        ((2, 0, 33), (2, DIM)),
        ((2, 9, 33), (2, 18)),
        ((2, 9, 33), (1, DIM)),
        ((2, 9, 33), (DIM,)),
        ((2, 9, 33), None),
    ],
)
def test_wrong_shapes_are_refused(kind: str, mixture: tuple[int, ...], embedding: Any) -> None:
    network = network_of(kind).eval()
    with pytest.raises(ValueError, match="expected"):
        network(torch.rand(mixture), None if embedding is None else torch.rand(embedding))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith("lite")])
def test_complex_masks_refuse_what_they_cannot_be(kind: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        network_of(kind, "complex")(torch.rand(2, 9, BINS), torch.rand(2, DIM))
    for scale in ("log", "db"):
        with pytest.raises(ValueError, match=f"have no {scale}"):
            network_of(kind, "complex", scale)
    with pytest.raises(ValueError, match="a soft mask"):
        network_of("lite", "complex")


def test_networks_see_the_mixture_on_its_scale() -> None:
    x = torch.randn(2, 5, BINS, 2)
    seen = network_of("unet", "complex", "power").see(x)
    spectrum = torch.view_as_complex(x)
    expected = torch.polar(spectrum.abs() ** 0.3, spectrum.angle())
    torch.testing.assert_close(torch.complex(seen[:, 0], seen[:, 1]), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(network_of("unet").see(x[..., 0].abs())[:, 0], x[..., 0].abs())


@pytest.mark.filterwarnings("ignore:The tensor attributes")
@pytest.mark.parametrize("kind", KINDS)
def test_networks_can_be_exported(kind: str) -> None:
    network = stirred(network_of(kind))
    arguments = (mixture_of(network), torch.randn(3, DIM))
    exported = torch.export.export(network, arguments, strict=False).module()
    torch.testing.assert_close(exported(*arguments), network(*arguments))


# ---------------------------------------------------------------- VoiceFilter


def test_the_full_network_has_the_published_size_and_names() -> None:
    network = build_network(load_config("config/voicefilter.yaml").network, 601, 256)
    assert sum(p.numel() for p in network.parameters()) == 18_876_001
    state = network.state_dict()
    assert state["conv.1.weight"].shape == (64, 1, 1, 7)
    assert state["conv.5.weight"].shape == (64, 64, 7, 1)
    assert all(state[f"conv.{k}.weight"].shape == (64, 64, 5, 5) for k in (9, 13, 17, 21, 25))
    assert all(f"conv.{k}.running_mean" in state for k in (2, 6, 10, 14, 18, 22, 26, 29))
    assert state["conv.28.weight"].shape == (8, 64, 1, 1)
    assert state["lstm.weight_ih_l0_reverse"].shape == (1600, 5064)
    assert (state["fc1.weight"].shape, state["fc2.weight"].shape) == ((600, 800), (601, 600))


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("dim", [0, 5])
def test_the_lstm_with_a_constant_is_torch_s(bidirectional: bool, dim: int) -> None:
    torch.manual_seed(0)
    lstm = nn.LSTM(7 + dim, 6, batch_first=True, bidirectional=bidirectional)
    x = torch.randn(3, 9, 7, requires_grad=True)
    constant = torch.randn(3, dim, requires_grad=True) if dim else None
    given = x if constant is None else torch.cat([x, constant[:, None].expand(-1, 9, -1)], dim=2)
    outputs = lstm_with_constant(lstm, x, constant), lstm(given)[0]
    torch.testing.assert_close(*outputs)
    weight = torch.randn_like(outputs[0])
    wanted = [x, *lstm.parameters(), *([] if constant is None else [constant])]
    for ours, theirs in zip(*(torch.autograd.grad((o * weight).sum(), wanted) for o in outputs), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_variants_without_a_second_direction_or_an_lstm() -> None:
    forward = VoiceFilter(601, 256, lstm="unidirectional")
    assert forward.lstm is not None and not forward.lstm.bidirectional
    assert (forward.lstm.input_size, forward.lstm.hidden_size) == (8 * 601 + 256, 400)
    assert forward.fc1.in_features == 400
    without = VoiceFilter(601, 256, lstm="none")
    assert without.lstm is None and without.fc1.in_features == 8 * 601 + 256


def test_the_network_equals_its_description() -> None:
    """Section 2.2 and table 1 step by step, Mish in the convolutions, as VoiceSplit has it."""
    network = VoiceFilter(BINS, DIM, activation="mish", **SMALL_FILTER)  # type: ignore[arg-type]
    state = stirred(network).state_dict()
    mixture, embedding = torch.rand(2, FRAMES, BINS), torch.randn(2, DIM)

    def layer(x: Tensor, conv: int, padding: tuple[int, int], dilation: int) -> Tensor:
        x = nn.functional.conv2d(
            x, state[f"conv.{conv}.weight"], state[f"conv.{conv}.bias"], 1, padding, (dilation, 1)
        )
        norm = {key: state[f"conv.{conv + 1}.{key}"][:, None, None] for key in NORM}
        x = (x - norm["running_mean"]) / (norm["running_var"] + 1e-5).sqrt() * norm["weight"] + norm["bias"]
        return x * torch.tanh(torch.log1p(torch.exp(x)))  # Mish

    x = mixture[:, None]
    for number, (time, frequency, dilation) in enumerate(LAYERS):
        x = layer(x, 4 * number + 1, ((time - 1) // 2 * dilation, (frequency - 1) // 2), dilation)
    x = layer(x, 28, (0, 0), 1)
    # channel * F + bin, then the d-vector, in every frame
    frames = torch.cat(
        [x.permute(0, 2, 1, 3).reshape(2, FRAMES, -1), embedding[:, None].expand(-1, FRAMES, -1)], 2
    )
    assert network.lstm is not None
    hidden = torch.relu(network.fc1(torch.relu(network.lstm(frames)[0])))
    torch.testing.assert_close(network(mixture, embedding), torch.sigmoid(network.fc2(hidden)))


NORM = ("running_mean", "running_var", "weight", "bias")


@pytest.mark.parametrize(
    ("kernel", "dilation"), [((1, 7), 1), ((7, 1), 1), ((5, 5), 1), ((5, 5), 2), ((5, 5), 16)]
)
def test_a_partial_convolution_equals_its_formula(kernel: tuple[int, int], dilation: int) -> None:
    """x' = W (X * M) * sum(1) / sum(M) + b (Liu et al. 2018), M ones within the signal and zeros around."""
    torch.manual_seed(0)
    padding = ((kernel[0] - 1) // 2 * dilation, (kernel[1] - 1) // 2)
    partial = PartialConv2d(3, 4, kernel, padding=padding, dilation=(dilation, 1))
    x = torch.randn(2, 3, 21, 13)
    inside = nn.functional.conv2d(
        torch.ones(1, 1, 21, 13), torch.ones(1, 1, *kernel), None, 1, padding, (dilation, 1)
    )
    bias = partial.bias[:, None, None]  # type: ignore[index]
    plain = nn.functional.conv2d(x, partial.weight, partial.bias, 1, padding, (dilation, 1))
    expected = (plain - bias) * (kernel[0] * kernel[1] / inside) + bias
    out = partial(x)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    full = (inside == kernel[0] * kernel[1])[0, 0]
    torch.testing.assert_close(out[..., full], plain[..., full], atol=1e-5, rtol=1e-5)
    assert full.any() or dilation == 16


def test_the_partial_branch_has_its_own_names() -> None:
    network = VoiceFilter(BINS, DIM, partial_convolution=True, **SMALL_FILTER)  # type: ignore[arg-type]
    state = network.state_dict()
    convolutions = (0, 3, 6, 9, 12, 15, 18, 21)
    assert {int(key.split(".")[1]) for key in state if key.startswith("conv.")} == {
        k for first in convolutions for k in (first, first + 1)
    }
    for k in convolutions:
        assert state[f"conv.{k}.weight"].ndim == 4 and f"conv.{k + 1}.running_mean" in state
    assert {key for key in state if not key.startswith("conv.")} == {
        key for key in network_of("voicefilter").state_dict() if not key.startswith("conv.")
    }


# ---------------------------------------------------------------- ensemble


def test_an_ensemble_answers_the_mean_of_its_members() -> None:
    network = stirred(network_of("ensemble"))
    assert network.frame_multiple == 6
    mixture, embedding = mixture_of(network), torch.randn(3, DIM)
    first, second = (member(mixture, embedding) for member in network.members)  # type: ignore[union-attr]
    assert not torch.allclose(first, second)
    torch.testing.assert_close(network(mixture, embedding), (first + second) / 2)
    with pytest.raises(ValueError, match="member 1 is an ensemble: take its members"):
        Ensemble(network.bins, network.embedding_dim, [network.parts[0], network])
    with pytest.raises(ValueError, match="1 members: an ensemble has two or more"):
        Ensemble(BINS, DIM, [network_of("film_blstm")])
    with pytest.raises(ValueError, match="member 1: bins, planes and embedding are"):
        Ensemble(BINS, DIM, [network_of("film_blstm"), network_of("band_split", dim=DIM + 1)])


# ---------------------------------------------------------------- film_blstm, band_split


@pytest.mark.parametrize("kind", ["film_blstm", "band_split"])
@pytest.mark.parametrize("mask", ["sigmoid", "complex"])
@pytest.mark.parametrize("scale", ["linear", "power"])
@pytest.mark.parametrize("factor", [1e-4, 0.3, 1e4])
def test_recurrent_networks_do_not_hear_the_level(kind: str, mask: str, scale: str, factor: float) -> None:
    network = stirred(network_of(kind, mask, scale))
    mixture, embedding = mixture_of(network), torch.randn(3, DIM)
    expected = network(mixture, embedding)
    torch.testing.assert_close(network(factor * mixture, embedding), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("bins", "expected"),
    [
        (401, [5] * 10 + [10] * 5 + [20] * 5 + [40] * 4 + [41]),
        (601, [5] * 15 + [10] * 8 + [20] * 8 + [40] * 6 + [46]),
        (3, [3]),
    ],
)
def test_bands_widen_with_every_octave(bins: int, expected: list[int]) -> None:
    widths = band_widths(bins, 5, 0.125)
    assert widths == expected and sum(widths) == bins


def test_bands_share_what_runs_over_time() -> None:
    # the same weights serve all bands: more of them cost only what splits, joins and modulates
    few, many = (
        sum(p.numel() for layer in network.blocks for p in layer.over_time.parameters())
        for network in (BandSplit(BINS, DIM, band_bins=9), BandSplit(BINS, DIM, band_bins=2))
    )
    assert few == many


def test_a_piece_has_the_level_that_it_has_within_the_whole() -> None:
    network = BandSplit(BINS, DIM, level_frames=7)
    mixture = torch.rand(1, 40, BINS) * torch.logspace(-3, 0, 40)[:, None]
    whole, piece = (network.levelled(m, network.level_frames) for m in (mixture, mixture[:, 10:30]))
    torch.testing.assert_close(piece[:, 3:-3], whole[:, 13:27])
    around = mixture[0, 17:24].square().mean().sqrt()
    torch.testing.assert_close(whole[0, 20], mixture[0, 20] / around)


# ---------------------------------------------------------------- U-Net


@pytest.mark.parametrize("mask", ["sigmoid", "complex"])
def test_the_u_net_equals_its_description(mask: str) -> None:
    """Two levels written out: block, pool, block, FiLM, bilinear up, skip, block, 1x1, K * tanh."""
    torch.manual_seed(0)
    network = UNet(8, DIM, channels=(3, 5), mask=mask, mask_bound=7.0)
    stirred(network)
    mixture, embedding = mixture_of(network, 2, 6), torch.randn(2, DIM)

    def block(x: Tensor, layers: Any) -> Tensor:
        x = layers[1](nn.functional.conv2d(x, layers[0].weight, layers[0].bias, padding=2))
        return torch.where(x > 0, x, 0.1 * x)

    x = mixture.permute(0, 3, 1, 2) if mask == "complex" else mixture[:, None]
    top = block(network.normalize(x), network.down[0])
    bottom = block(nn.functional.max_pool2d(top, 2), network.down[1])
    assert network.film is not None
    film = network.film(embedding)
    bottom = bottom * (1 + film[:, :5, None, None]) + film[:, 5:, None, None]
    up = nn.functional.interpolate(bottom, (6, 8), mode="bilinear", align_corners=False)
    out = network.out(block(torch.cat([up, top], 1), network.up[0]))
    expected = 7 * torch.tanh(out).permute(0, 2, 3, 1) if mask == "complex" else torch.sigmoid(out)[:, 0]
    torch.testing.assert_close(network(mixture, embedding), expected, atol=1e-5, rtol=1e-5)


def test_the_u_net_hears_the_embedding_in_film_alone_and_stays_within_its_bound() -> None:
    network = stirred(network_of("unet", "complex"))
    mixture, embedding = mixture_of(network), torch.randn(3, DIM)
    loud = 1e6 * mixture
    assert network(loud, embedding).abs().max() <= network.mask_bound
    assert isinstance(network, UNet) and network.film is not None
    nn.init.zeros_(network.film.weight)
    torch.testing.assert_close(network(mixture, embedding), network(mixture, embedding.flip(0)))


@pytest.mark.parametrize("bins", [32, 33])
def test_bins_of_a_step_share_a_mask(bins: int) -> None:
    network = stirred(UNet(bins, DIM, channels=(4, 5, 6), bin_step=2))
    mixture, embedding = torch.rand(2, 7, bins), torch.randn(2, DIM)
    mask = network(mixture, embedding)
    pairs = bins // 2
    torch.testing.assert_close(mask[..., : 2 * pairs : 2], mask[..., 1 : 2 * pairs : 2], atol=0, rtol=0)
    unseen = mixture.clone()
    unseen[..., 1::2] = 0  # the bins between are not seen
    torch.testing.assert_close(network(unseen, embedding), mask, atol=0, rtol=0)


def test_the_singing_configuration_builds() -> None:
    network = UNet(512, 256, bin_step=2, mask="complex").eval()
    widths = [layers[0].out_channels for layers in network.down]  # type: ignore[index,union-attr]
    assert widths == [32, 64, 128, 256, 512]
    assert network.film is not None and network.film.out_features == 2 * 512
    with torch.inference_mode():
        assert network(torch.randn(1, 20, 512, 2), torch.randn(1, 256)).shape == (1, 20, 512, 2)


# ---------------------------------------------------------------- Lite


def lite(suppression: str = "full", kind: str = "lite", **options: Any) -> Lite:
    torch.manual_seed(0)
    cls, small = KINDS[kind]
    network = stirred(cls(BINS, DIM, suppression=suppression, **small, **options))
    assert isinstance(network, Lite)
    return network


def test_lite_has_the_published_sizes() -> None:
    network = Lite(257, 256)
    lstm = network.lstm
    assert isinstance(lstm, nn.LSTM)
    assert (lstm.num_layers, lstm.hidden_size, lstm.bidirectional) == (3, 512, False)
    assert [m.out_features for m in network.noise_type if isinstance(m, nn.Linear)] == [64, 64, 1]
    assert all(m.kernel_size[0] == 1 for m in network.conv if isinstance(m, nn.Conv2d))


@pytest.mark.parametrize("suppression", ["full", "adaptive"])
@pytest.mark.parametrize("kind", ["lite", "lite film"])
def test_lite_does_not_hear_the_future(suppression: str, kind: str) -> None:
    network, mixture, embedding = lite(suppression, kind), torch.rand(2, FRAMES, BINS), torch.randn(2, DIM)
    before = network(mixture, embedding)
    for t in (0, 1, FRAMES - 1):
        changed = mixture.clone()
        changed[:, t] += 100 * torch.rand(2, BINS)
        mask = network(changed, embedding)
        torch.testing.assert_close(mask[:, :t], before[:, :t])
        assert (mask[:, t] - before[:, t]).abs().max() > 1e-5


@pytest.mark.parametrize("suppression", ["full", "adaptive"])
@pytest.mark.parametrize("kind", ["lite", "lite film"])
@pytest.mark.parametrize("sizes", [[1] * FRAMES, [3, 1, 5, 2]])
def test_lite_in_pieces_equals_lite_at_once(suppression: str, kind: str, sizes: list[int]) -> None:
    network, mixture, embedding = lite(suppression, kind), torch.rand(2, FRAMES, BINS), torch.randn(2, DIM)
    state, masks = None, []
    for piece in mixture.split(sizes, dim=1):
        mask, state = network.stream(piece, embedding, state)
        masks.append(mask)
    torch.testing.assert_close(torch.cat(masks, 1), network(mixture, embedding), atol=1e-6, rtol=1e-5)


def test_a_stream_s_state_is_not_rounded_from_frame_to_frame() -> None:
    network, mixture, embedding = lite(kind="lite film"), torch.rand(2, FRAMES, BINS), torch.randn(2, DIM)
    state = fine = None
    with torch.inference_mode():
        for frame in mixture.split(1, dim=1):
            with torch.autocast("cpu", torch.bfloat16):
                _, state = network.stream(frame, embedding, state)
            assert state.cell.dtype == state.hidden.dtype == torch.float32
            _, fine = network.stream(frame, embedding, fine)
        slow = state._replace(cell=state.cell + 2**-12)  # less than bf16 can tell
        with torch.autocast("cpu", torch.bfloat16):
            left = [network.stream(mixture[:, :1], embedding, s)[1].cell for s in (state, slow)]
    assert fine is not None and (left[0] != left[1]).all()
    torch.testing.assert_close(state.cell, fine.cell, atol=0.05, rtol=0)


def test_the_followed_level_equals_its_formula() -> None:
    network, mixture, sums = lite(kind="lite film"), torch.rand(2, FRAMES, BINS), torch.zeros(2, 2)
    seen, left = network._follow_level(mixture, None)
    for t in range(FRAMES):
        power = mixture[:, t].square().mean(1)
        sums = (1 - 1 / 5) * sums + torch.stack([power, torch.ones(2)], dim=1)
        torch.testing.assert_close(seen[:, t], mixture[:, t] / (sums[:, :1] / sums[:, 1:]).sqrt())
    torch.testing.assert_close(left, sums)
    loud = network(100 * mixture, embedding := torch.randn(2, DIM))
    torch.testing.assert_close(loud, network(mixture, embedding), atol=1e-5, rtol=1e-4)


def test_adaptive_suppression_equals_its_formula() -> None:
    network = lite("adaptive", smoothing=0.8, slope=0.7, offset=0.1)
    mixture, embedding = torch.rand(2, FRAMES, BINS), torch.randn(2, DIM)
    mask, overlap = network.mask_and_overlap(mixture, embedding)
    weight, expected = torch.zeros(2), []
    for t in range(FRAMES):
        probability = torch.sigmoid(overlap[:, t])
        weight = 0.8 * weight + (1 - 0.8) * (0.7 * probability + 0.1)
        enhanced = mask[:, t] * mixture[:, t]
        expected.append(weight[:, None] * enhanced + (1 - weight[:, None]) * mixture[:, t])
    torch.testing.assert_close(network(mixture, embedding) * mixture, torch.stack(expected, 1))
    torch.testing.assert_close(network.train().forward(mixture, embedding).shape, mask.shape)


@pytest.mark.parametrize(("slope", "offset", "share"), [(0.0, 5.0, 1.0), (0.0, -5.0, 0.0)])
def test_the_share_of_the_mask_stays_within_0_and_1(slope: float, offset: float, share: float) -> None:
    network = lite("adaptive", smoothing=0.0, slope=slope, offset=offset)
    mixture, embedding = torch.rand(2, FRAMES, BINS), torch.randn(2, DIM)
    mask, _ = network.mask_and_overlap(mixture, embedding)
    torch.testing.assert_close(network(mixture, embedding), 1 - share * (1 - mask))


# ---------------------------------------------------------------- what is done with a mask


def spectrum_of(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.complex64)


def masks() -> list[Tensor]:
    return [torch.rand(2, 5, BINS), torch.randn(2, 5, BINS, 2)]


@pytest.mark.parametrize("mask", masks(), ids=["soft", "complex"])
def test_what_is_kept_and_what_is_removed_make_the_mixture(mask: Tensor) -> None:
    spectrum = spectrum_of(2, 5, BINS)
    kept, removed = Masking("org")(spectrum, mask), Masking("inv_sub")(spectrum, mask)
    torch.testing.assert_close(kept + removed, spectrum)
    torch.testing.assert_close(Masking("inv_sub", 0.7)(spectrum, mask), removed / 0.7)
    gain = torch.view_as_complex(mask) if mask.ndim == 4 else mask
    torch.testing.assert_close(kept, spectrum * gain)


@pytest.mark.parametrize("mask", masks(), ids=["soft", "complex"])
def test_a_division_by_the_mask_is_one_above_the_floor_and_finite_below(mask: Tensor) -> None:
    spectrum = spectrum_of(2, 5, BINS)
    gain = torch.view_as_complex(mask) if mask.ndim == 4 else mask
    divided = Masking("inv_div", 0.7)(spectrum, mask)
    above = gain.abs() > MASK_FLOOR
    torch.testing.assert_close(divided[above], (0.7 * spectrum / gain)[above])
    loudest = 0.7 * spectrum / MASK_FLOOR
    torch.testing.assert_close(Masking("inv_div", 0.7)(spectrum, torch.zeros_like(mask)), loudest)
    assert (divided.abs() <= loudest.abs() * (1 + 1e-5)).all()


@pytest.mark.parametrize("use", ["org", "inv_sub", "inv_div"])
def test_a_real_complex_mask_is_a_soft_one(use: Any) -> None:
    spectrum, mask = spectrum_of(2, 5, BINS), torch.rand(2, 5, BINS)
    as_complex = torch.stack([mask, torch.zeros_like(mask)], -1)
    masking = Masking(use, 0.8)
    torch.testing.assert_close(masking(spectrum, as_complex), masking(spectrum, mask))


def test_a_mask_on_decibels_equals_the_formula_of_the_reimplementation() -> None:
    spectrum, mask = 3 * spectrum_of(2, 5, BINS), torch.rand(2, 5, BINS)
    level = torch.clip((20 * torch.log10(torch.clip(spectrum.abs(), 1e-5)) - 20) / 100, -1, 0) + 1
    masked = torch.clip(level * mask, 0, 1)
    expected = 10 ** (((masked - 1) * 100 + 20) / 20) * torch.exp(1j * spectrum.angle())
    torch.testing.assert_close(Masking(db=True)(spectrum, mask), expected, atol=1e-5, rtol=1e-4)


def test_decibels_come_back_within_their_range_and_are_clipped_outside() -> None:
    magnitude = torch.logspace(-4, 1, 50)
    torch.testing.assert_close(from_db(to_db(magnitude)), magnitude, atol=0, rtol=1e-4)
    assert to_db(torch.tensor([0.0, 1e-9])).tolist() == [0, 0]
    loud = to_db(torch.tensor([10.0, 11.0, 1e4]))
    torch.testing.assert_close(loud, torch.ones(3))


def test_maskings_that_cannot_be_are_refused() -> None:
    for factor in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="must be above 0"):
            Masking("inv_sub", factor)
    with pytest.raises(ValueError, match="no phase"):
        Masking(db=True)(spectrum_of(2, 5, BINS), masks()[1])


def test_an_ideal_complex_mask_gives_the_target_back() -> None:
    """S / X, as the network's bounded output would be, through STFT, mask and inverse."""
    spectral, generator = Spectral(256, 64, 256), torch.Generator().manual_seed(0)
    target, noise = torch.randn(2, 2, 4000, generator=generator)
    mixture = target + 0.3 * noise
    network = UNet(129, 0, channels=(2, 3), mask="complex", mask_bound=1e4)
    ideal = torch.view_as_real(spectral(target) / spectral(mixture)).double()
    output = torch.atanh(ideal / network.mask_bound).movedim(-1, 1).float()  # what tanh has to be given
    estimate = spectral.inverse(Masking()(spectral(mixture), network.to_mask(output)), 4000)
    torch.testing.assert_close(estimate, target, atol=1e-4, rtol=0)


# ---------------------------------------------------------------- a stream


def lite_separator(suppression: str = "full", *overrides: str, dim: int = 0) -> Separator:
    """With random weights; `dim` above 0: it has an embedder."""
    torch.manual_seed(0)
    embedding = "reference" if dim else "none"
    options = "channels: 3, lstm_dim: 8, noise_type_dim: 5"
    network = f"network={{kind: lite, {options}, embedding: {embedding}, suppression: {suppression}}}"
    head = "loss.noise_type=0.1"
    config = load_config(None, [network, head, "train.precision=fp32", *overrides])
    separator = Separator(config, DVector(hidden=8) if dim else None).eval()
    stirred(separator.network)
    return separator


def streamed(stream: StreamingSeparator, mixture: Tensor, sizes: list[int]) -> Tensor:
    """In blocks of `sizes`, again and again; every sample comes within the latency, and none too early."""
    given, start, parts = 0, 0, []
    sizes_in_turn = itertools.cycle(sizes)
    while start < mixture.shape[1]:
        size = next(sizes_in_turn)
        parts.append(stream(mixture[:, start : start + size]))
        start = min(start + size, mixture.shape[1])
        given += parts[-1].shape[1]
        assert start - stream.latency <= given <= start
    return torch.cat([*parts, stream.flush()], dim=1)


@pytest.mark.parametrize("suppression", ["full", "adaptive"])
@pytest.mark.parametrize("frames", [(1200, 160, 400), (512, 160, 400), (64, 7, 64), (66, 20, 41)])
@pytest.mark.parametrize("length", [1, 7, 399, 1600, 3333])
def test_a_stream_in_any_blocks_equals_the_whole(
    suppression: str, frames: tuple[int, int, int], length: int
) -> None:
    names = ("n_fft", "hop_length", "win_length")
    overrides = [f"audio.{name}={value}" for name, value in zip(names, frames, strict=True)]
    separator = lite_separator(suppression, *overrides)
    mixture = torch.randn(2, length)
    with torch.inference_mode():
        whole = separator(mixture, None)
    stream = StreamingSeparator(separator)
    assert stream.latency == frames[2] - 1
    divisions = [[length], [3, 0, 500, 37, 1, 0, 160]]
    for sizes in divisions + ([[1]] if length < 400 else []):
        torch.testing.assert_close(streamed(stream, mixture, sizes), whole, atol=1e-5, rtol=0)


def test_a_stream_follows_its_embedding_and_begins_anew_after_its_end() -> None:
    separator = lite_separator("adaptive", dim=256)
    mixture, embedding = torch.randn(2, 2000), torch.randn(2, 256)
    stream = StreamingSeparator(separator, embedding)
    with torch.inference_mode():
        whole = separator(mixture, embedding)
    for _ in range(2):
        torch.testing.assert_close(streamed(stream, mixture, [300, 11]), whole, atol=1e-5, rtol=0)
    other = streamed(StreamingSeparator(separator, embedding.flip(0)), mixture, [300])
    assert (other - whole).abs().max() > 1e-4
    assert stream.flush().shape == (2, 0)


@pytest.mark.parametrize("suppression", ["full", "adaptive"])
def test_a_long_file_goes_through_lite_as_one_stream(suppression: str) -> None:
    separator = lite_separator(suppression, "audio.hop_length=200", dim=256)
    mixture, embedding = 0.1 * torch.randn(2, 21 * separator.sample_rate + 7), torch.randn(1, 256)
    with torch.inference_mode():
        whole = separator(mixture, embedding.expand(2, -1))
    torch.testing.assert_close(
        torch.from_numpy(separator.separate_channels(mixture.numpy(), embedding)), whole, atol=1e-5, rtol=0
    )


def test_how_much_lite_suppresses_is_chosen_after_training() -> None:
    separator = lite_separator("full")
    other = separator.config.model_dump()
    other["network"] |= {"suppression": "adaptive", "offset": 0.5, "smoothing": 0.5}
    config = check_config(other, "other")
    adaptive = Separator.from_content(separator.content(), "here", config).eval()
    mixture = torch.randn(1, 2000)
    with torch.inference_mode():
        assert (adaptive(mixture, None) - separator(mixture, None)).abs().max() > 1e-3
    other["network"]["lstm_dim"] = 9
    with pytest.raises(UserError, match=r"another configuration \(network\.lstm_dim: 8 -> 9\)"):
        Separator.from_content(separator.content(), "here", check_config(other, "other"))


def test_a_stream_waits_for_its_latency_at_most_and_once_exactly() -> None:
    separator = lite_separator("full", "audio.n_fft=512")
    stream, given, waits = StreamingSeparator(separator), 0, set()
    for sample in torch.randn(1, 1500).split(1, dim=1):
        given += stream(sample).shape[1]
        waits.add(stream._received - given)
    assert max(waits) == stream.latency


def test_a_stream_computes_in_the_separator_s_precision() -> None:
    separator = lite_separator("full", "train.precision=bf16")
    mixture = torch.randn(1, 1600)
    with torch.inference_mode():
        whole = separator(mixture, None)
    out = streamed(StreamingSeparator(separator), mixture, [320])
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, whole, atol=0.05, rtol=0)


def test_what_cannot_be_streamed_is_refused() -> None:
    with pytest.raises(ValueError, match="reflect"):
        StreamingSeparator(lite_separator("full", "audio.pad_mode=reflect"))
    with pytest.raises(ValueError, match="evaluation mode"):
        StreamingSeparator(lite_separator().train())
    config = load_config(None, ["network={kind: film_blstm, front_dim: 8, lstm_dim: 8, embedding: none}"])
    with pytest.raises(ValueError, match="hears the future"):
        StreamingSeparator(Separator(config, None).eval())
    with pytest.raises(ValueError, match="expected"):
        StreamingSeparator(lite_separator(dim=256), torch.randn(1, 255))
    stream = StreamingSeparator(lite_separator())
    stream(torch.zeros(2, 5))
    for block in (torch.zeros(3, 5), torch.zeros(5)):
        with pytest.raises(ValueError, match=r"expected \[2, samples\]"):
            stream(block)


@pytest.mark.parametrize("layers", [1, 3])
def test_an_lstm_in_steps_is_the_lstm(layers: int) -> None:
    torch.manual_seed(0)
    lstm, x = nn.LSTM(7, 5, layers, batch_first=True), torch.randn(2, 9, 7)
    with torch.inference_mode():
        whole, left = lstm(x)
        first, state = lstm_in_steps(lstm, x[:, :4], None)
        second, state = lstm_in_steps(lstm, x[:, 4:], state)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole, atol=1e-6, rtol=0)
    torch.testing.assert_close(state, left, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", list(KINDS))
def test_folded_batch_norms_leave_the_mask(name: str) -> None:
    torch.manual_seed(0)
    kind, options = KINDS[name]
    network = kind(BINS, DIM, **options)
    with pytest.raises(ValueError, match="training"):
        fold_batch_norms(network)
    network.eval()
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for values, low in (
                (norm.weight, 0.5),
                (norm.bias, -1.0),
                (norm.running_mean, -1.0),
                (norm.running_var, 0.5),
            ):
                values.data.uniform_(low, 2.0)
    mixture, embedding = torch.rand(2, FRAMES, BINS), torch.randn(2, DIM)
    with torch.inference_mode():
        before = network(mixture, embedding)
        fold_batch_norms(network)
        torch.testing.assert_close(network(mixture, embedding), before, atol=1e-5, rtol=0)
    left = [norm for norm in network.modules() if isinstance(norm, nn.BatchNorm2d)]
    folds = name.startswith("voicefilter") and "partial" not in name
    assert not left or not folds
    convolutions = [part for part in network.modules() if type(part) is nn.Conv2d and part.in_channels > 1]
    if folds:
        assert all(c.weight.is_contiguous(memory_format=torch.channels_last) for c in convolutions)


def test_residual_layers_begin_as_identities() -> None:
    torch.manual_seed(0)
    few = FilmBlstm(BINS, DIM, front_dim=8, lstm_dim=8).eval()
    more = FilmBlstm(BINS, DIM, front_dim=8, lstm_dim=8, residual_layers=2).eval()
    missing, unexpected = more.load_state_dict(few.state_dict(), strict=False)
    assert missing and all(name.startswith(more.identities) for name in missing) and not unexpected
    mixture, embedding = torch.rand(2, FRAMES, BINS), torch.randn(2, DIM)
    torch.testing.assert_close(more(mixture, embedding), few(mixture, embedding))


@pytest.mark.parametrize("front", [8, 16])
def test_two_blind_voices_begin_as_the_mask_of_a_network_that_listened(front: int) -> None:
    torch.manual_seed(0)
    sizes = {"residual_layers": 1, "stack": 2, "level_frames": 5}
    heard = FilmBlstm(BINS, DIM, front_dim=8, lstm_dim=8, **sizes).eval()
    blind = BlindBlstm(BINS, DIM, front_dim=front, lstm_dim=8, choice_dim=5, **sizes).eval()
    without = {name: value for name, value in blind.state_dict().items() if name.startswith(blind.identities)}
    blind.load_state_dict({**without, **blind.widened(heard.state_dict())})
    mixture, embedding = torch.rand(2, FRAMES, BINS), torch.randn(2, DIM)
    mask, voices = blind.mask_and_voices(mixture, embedding)
    assert mask.shape == mixture.shape and voices.shape == (2, 2, FRAMES, BINS)
    with torch.no_grad():  # then its FiLM does nothing
        for film in (heard.film, heard.residuals[0].film):
            film.bias.zero_()  # type: ignore[union-attr]
        expected = heard(mixture, torch.zeros(2, DIM))
    torch.testing.assert_close(voices[:, 0], expected)
    difference = (voices[:, 0] - voices[:, 1]).abs()
    assert 0 < difference.mean() < 0.05
    share = torch.tensor([0.0, 0.0, -2.0]).softmax(0)[0]  # nothing chooses yet
    torch.testing.assert_close(mask, share * voices.sum(1))
    state = blind.state_dict()
    assert blind.widened(state) is state


def test_a_blind_network_hears_the_reference_in_its_choice_alone() -> None:
    network = stirred(network_of("blind_blstm deep"))
    assert isinstance(network, BlindBlstm)
    mixture = torch.rand(2, FRAMES, BINS)
    first, second = (network.mask_and_voices(mixture, torch.randn(2, DIM)) for _ in range(2))
    assert torch.equal(first[1], second[1]) and not torch.allclose(first[0], second[0])
    assert torch.equal(
        network(mixture, torch.zeros(2, DIM)), network.mask_and_voices(mixture, torch.zeros(2, DIM))[0]
    )
    low, high = first[1].amin(1), first[1].amax(1)
    assert (first[0] <= high).all() and (first[0] >= 0).all() and (low >= 0).all()


@pytest.mark.parametrize(
    ("front", "lstm", "tolerance"), [(8, 16, 1e-5), (16, 8, 1e-5), (13, 24, 1e-5), (8, 12, 0.05)]
)
def test_a_wider_network_begins_as_the_narrower_one(front: int, lstm: int, tolerance: float) -> None:
    torch.manual_seed(0)
    sizes = {"residual_layers": 1, "stack": 2}
    narrow = FilmBlstm(BINS, DIM, front_dim=8, lstm_dim=8, **sizes).eval()
    wide = FilmBlstm(BINS, DIM, front_dim=front, lstm_dim=lstm, **sizes).eval()
    for parameter in (*narrow.residuals.parameters(), *narrow.norms.parameters()):
        torch.nn.init.normal_(parameter, 0.2, 0.2)  # no identities
    state = wide.widened(narrow.state_dict())
    wide.load_state_dict(state)
    mixture, embedding = torch.rand(2, FRAMES, BINS), torch.randn(2, DIM)
    with torch.no_grad():
        torch.testing.assert_close(
            wide(mixture, embedding), narrow(mixture, embedding), atol=tolerance, rtol=0
        )
    for name, value in wide.widened(narrow.state_dict()).items():
        assert torch.equal(value, state[name]), "the same every time"
    if lstm > 8:  # copies differ in what they give to others, so they learn different things
        out = state["out.weight"]
        assert not torch.allclose(out[:, 0], out[:, 8])
    assert narrow.widened(wide.state_dict())["out.weight"].shape == state["out.weight"].shape, (
        "never narrower"
    )


# ---------------------------------------------------------------- how they are run


@pytest.mark.parametrize("kind", KINDS)
def test_every_lstm_is_called_in_the_way_that_cuda_needs(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Autocast would compute it in float16 there (`call_lstm`)."""
    inside: list[nn.LSTM] = []
    seen: list[bool] = []

    def watched(lstm: nn.LSTM, *given: Any) -> Any:
        inside.append(lstm)
        found = call_lstm(lstm, *given)
        inside.pop()
        return found

    for module in (band_split, film_blstm, layers, recurrent, voicefilter):
        monkeypatch.setattr(module, "call_lstm", watched)
    network = network_of(kind).eval()
    lstms = [module for module in network.modules() if isinstance(module, nn.LSTM)]
    for lstm in lstms:
        lstm.register_forward_pre_hook(lambda lstm, given: seen.append(lstm in inside))
    with torch.no_grad():
        network(mixture_of(network), torch.randn(3, DIM))
    assert len(seen) == len(lstms) and all(seen)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("carried", [False, True])
def test_an_lstm_on_a_cpu_without_bfloat16_stays_in_float32(
    bidirectional: bool, carried: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """oneDNN has none in bfloat16 there, and a user may still have asked for it."""
    monkeypatch.setattr(recurrent, "CPU_HAS_BF16", False)
    lstm, x = nn.LSTM(8, 8, batch_first=True, bidirectional=bidirectional), torch.randn(2, 5, 8)
    state = (torch.randn(1 + bidirectional, 2, 8), torch.randn(1 + bidirectional, 2, 8)) if carried else None
    expected, _ = lstm(x, state)
    with torch.autocast("cpu", torch.bfloat16):
        found, left = call_lstm(lstm, x, state)
        rounded, _ = call_lstm(lstm, x.bfloat16(), state)
    assert found.dtype == left[1].dtype == rounded.dtype == torch.float32
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(rounded, expected, rtol=0, atol=0.02)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_an_lstm_has_no_float16_gradients_on_cuda() -> None:
    """In which those of a mean over many bins would be zero."""
    lstm, x = nn.LSTM(8, 8, batch_first=True, bidirectional=True).cuda(), torch.randn(2, 5, 8).cuda()
    gradients = []
    for enabled in (False, True):
        lstm.zero_grad()
        with torch.autocast("cuda", torch.bfloat16, enabled):
            y, _ = call_lstm(lstm, x)
        assert y.dtype == torch.float32
        (1e-9 * y.sum()).backward()
        assert lstm.weight_hh_l0.grad is not None
        gradients.append(lstm.weight_hh_l0.grad.clone())
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-2, atol=1e-12)


@pytest.mark.parametrize("kind", ["film_blstm residual", "blind_blstm", "band_split whole", "voicefilter"])
def test_a_compiled_network_is_the_network(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_it = torch.compile
    monkeypatch.setattr(torch, "compile", lambda it, **_: compile_it(it, backend="eager"))
    network = network_of(kind)
    names = list(network.state_dict())
    mixture, embedding = mixture_of(network), torch.randn(3, DIM)
    found = []
    for compiled in (False, True):
        if compiled:
            network.compile_forward()
        network.zero_grad()
        network.train()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.eval()
        mask = network(mixture, embedding)
        mask.square().mean().backward()
        found.append([mask.detach(), *(p.grad.clone() for p in network.parameters() if p.grad is not None)])
    assert list(network.state_dict()) == names and len(found[0]) == len(found[1]) > 1
    for own, other in zip(*found, strict=True):
        torch.testing.assert_close(other, own)
