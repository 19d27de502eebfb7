"""Every criterion against its formula on small numbers, and its gradients where signals vanish."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from config.load import load_config
from config.network_schema import Loss
from model.dvector import DVector
from model.embedder import Embedder
from model.features import rest_of
from model.foreign import MINDSLAB, RESEMBLYZER
from model.losses import CLOSEST, FLOOR, INACTIVE, Comparison, criteria, negative_si_sdr, noise_type
from model.objective import SeparatorObjective, mix_embeddings
from model.separator import Separator
from model.speaker_loss import distance, speaker_criteria, srl, triplet_srl
from model.spectral import Spectral
from model.vggm import VggM
from tests.conftest import tone_voice
from utils.errors import UserError
from utils.metrics import si_sdr

SPECTRAL = ["magnitude_mse", "power_law", "power_law_complex", "asymmetric", "mask_mse", "si_sdr", "snr"]


def only(**weights: Any) -> Loss:
    return Loss(**{"power_law": 0.0, "magnitude_mse": 1e-30, **weights})


def db(ratio: float) -> float:
    return 10 * float(np.log10(ratio))


SOFT = Comparison(
    mask=torch.tensor([[[0.5, 0.25]]]),
    mixture=torch.tensor([[[2.0, 4.0]]]),
    target=torch.tensor([[[1.0, 3.0]]]),
    cosine=torch.tensor([[[1.0, 0.5]]]),
)
"""One frame of two bins: E = (1, 1), S = (1, 3)."""

# ---------------------------------------------------------------- formulas


def test_magnitude_criteria_equal_their_formulas() -> None:
    loss = only(magnitude_mse=1.0, power_law=2.0, power_law_complex=0.5, asymmetric=1.0)
    values = criteria(loss, SOFT)
    power = 3**0.3
    assert values["magnitude_mse"].item() == pytest.approx((0**2 + 2**2) / 2)
    assert values["power_law"].item() == pytest.approx((power - 1) ** 2 / 2, rel=1e-3)
    assert values["power_law_complex"].item() == pytest.approx(
        (0 + 1 + 3**0.6 - 2 * power * 0.5) / 2, rel=1e-3
    )
    assert values["asymmetric"].item() == pytest.approx((10 * (power - 1)) ** 2 / 2, rel=1e-3)


def test_phase_sensitive_targets_are_the_part_in_phase() -> None:
    opposed = replace(SOFT, cosine=torch.tensor([[[0.5, -0.5]]]))  # S max(C, 0) = (0.5, 0)
    loss = only(magnitude_mse=1.0, power_law=1.0, mask_mse=1.0, target="phase_sensitive")
    values = criteria(loss, opposed)
    assert values["magnitude_mse"].item() == pytest.approx((0.5**2 + 1**2) / 2)
    compressed = ((1 - 0.5**0.3) ** 2 + (1 - FLOOR**0.3) ** 2) / 2
    assert values["power_law"].item() == pytest.approx(compressed, rel=1e-3)
    assert values["mask_mse"] == criteria(only(mask_mse=1.0), opposed)["mask_mse"]


def test_asymmetric_charges_suppression_alone() -> None:
    target = torch.tensor([[[1.0, 1.0]]])
    compared = Comparison(torch.tensor([[[0.25, 1.0]]]), torch.tensor([[[2.0, 2.0]]]), target)
    value = criteria(only(asymmetric=1.0, asymmetric_alpha=7.0, exponent=1.0), compared)["asymmetric"]
    assert value.item() == pytest.approx(((7 * 0.5) ** 2 + 1.0**2) / 2, rel=1e-3)


def test_mask_errors_are_weighted_by_the_mixture() -> None:
    value = criteria(only(mask_mse=1.0), SOFT)["mask_mse"].item()
    assert value == pytest.approx((np.log1p(2) * 0 + np.log1p(4) * (0.25 - 0.75) ** 2) / 2)
    # target over mixture: 0.5 at 60 degrees, and 4 opposite, which the bound cuts to 3
    mask = torch.tensor([[[[0.1, 0.2], [-1.0, 1.0]]]])
    compared = Comparison(
        mask,
        torch.tensor([[[2.0, 1.0]]]),
        torch.tensor([[[1.0, 4.0]]]),
        torch.tensor([[[0.5, -1.0]]]),
        torch.tensor([[[0.75**0.5, 0.0]]]),
        mask_bound=3.0,
    )
    first = (0.1 - 0.25) ** 2 + (0.2 - 0.5 * 0.75**0.5) ** 2
    expected = (np.log1p(2) * first + np.log1p(1) * ((-1 + 3) ** 2 + 1)) / 2
    assert criteria(only(mask_mse=1.0), compared)["mask_mse"].item() == pytest.approx(expected, rel=1e-5)


def test_waveform_criteria_equal_their_formulas() -> None:
    estimate, target = torch.tensor([[1.0, 1.0, 0.5]]), torch.tensor([[1.0, 0.0, 1.0]])
    ones = torch.ones(1, 1, 3)
    compared = Comparison(ones, ones, ones, waves=(estimate, target, torch.tensor([[2.0, 0.0, 1.0]])))
    values = criteria(only(si_sdr=1.0, snr=1.0), compared)
    scaled = (1.5 / 2) * target
    expected = db(float(scaled.square().sum() / (estimate - scaled).square().sum()))
    assert values["si_sdr"].item() == pytest.approx(-expected, abs=1e-3)
    assert values["snr"].item() == pytest.approx(-db(2 / 1.25), abs=1e-3)


@pytest.mark.parametrize("waves", [True, False])
def test_a_silent_target_asks_for_silence(waves: bool) -> None:
    """Half the examples are silent: these score the output's level, and `absent` counts them alone."""
    mixture = torch.tensor([[3.0, 4.0], [3.0, 4.0]])
    target = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    mask = torch.full((2, 1, 2), 0.5)
    compared = Comparison(
        mask,
        mixture[:, None],
        target[:, None],
        torch.ones(2, 1, 2),
        waves=(0.5 * mixture, target, mixture) if waves else None,
    )
    level = db(0.25 + INACTIVE)
    values = criteria(only(si_sdr=1.0, snr=1.0, absent=1.0), compared)
    assert values["absent"].item() == pytest.approx(level, abs=1e-3)
    assert values["snr"].item() == pytest.approx((level + db(0.25)) / 2, abs=1e-3)
    assert values["si_sdr"].item() == pytest.approx((level + db(CLOSEST)) / 2, abs=0.01)
    nobody = Comparison(mask[:1], mixture[:1, None], target[:1, None], torch.ones(1, 1, 2))
    assert criteria(only(absent=1.0), nobody)["absent"].item() == 0


@pytest.mark.parametrize("frames", [(1200, 160, 400), (800, 400, 800)])
def test_an_stft_s_si_sdr_is_the_waveform_s_without_a_mask_and_lower_under_one(
    frames: tuple[int, int, int],
) -> None:
    """What does not fit together in a masked STFT is error that its inverse drops."""
    spectral = Spectral(*frames)
    target = torch.from_numpy(np.stack([tone_voice(s, 3.0, 0) for s in range(3)]))
    mixture = target + torch.from_numpy(np.stack([tone_voice(s + 3, 3.0, 1) for s in range(3)]))
    x, s = spectral(mixture), spectral(target)
    cosine = (x.conj() * s).real / (x.abs() * s.abs()).clamp_min(1e-12)
    ideal = (s.abs() / (s.abs() + (x - s).abs()).clamp_min(1e-9)).clamp(0, 1)
    gaps = []
    for mask in (torch.ones_like(ideal), ideal):
        ours = -negative_si_sdr(Comparison(mask, x.abs(), s.abs(), cosine))
        heard = si_sdr(spectral.inverse(x * mask, mixture.shape[1]), target)
        gaps.append((heard - ours).mean().item())
    assert gaps[0] == pytest.approx(0, abs=0.2) and 0.1 < gaps[1] < 2.5


def test_a_complex_mask_is_compared_as_its_spectrum() -> None:
    torch.manual_seed(0)
    x, s = (torch.view_as_complex(torch.randn(2, 5, 9, 2)) for _ in range(2))
    mask = torch.randn(2, 5, 9, 2)
    e, turn = x * torch.view_as_complex(mask), s / s.abs() * (x.conj() / x.abs())
    compared = Comparison(mask, x.abs(), s.abs(), turn.real, turn.imag)
    values = criteria(only(magnitude_mse=1.0, power_law_complex=1.0, snr=1.0), compared)
    torch.testing.assert_close(values["magnitude_mse"], (e.abs() - s.abs()).square().mean())
    bent = [z / z.abs() * (z.abs() + FLOOR) ** 0.3 for z in (e, s)]
    torch.testing.assert_close(values["power_law_complex"], (bent[0] - bent[1]).abs().square().mean())
    weight = torch.full((9,), 2.0)
    weight[[0, -1]] = 1.0
    noise, signal = ((weight * z.abs().square()).sum((1, 2)) for z in (e - s, s))
    torch.testing.assert_close(values["snr"], (10 * torch.log10(noise / signal)).mean(), atol=1e-3, rtol=0)


def test_relative_criteria_do_not_know_the_level() -> None:
    loss = only(magnitude_mse=1.0, power_law=1.0, si_sdr=1.0, relative=True)
    louder = Comparison(SOFT.mask, 7 * SOFT.mixture, 7 * SOFT.target, SOFT.cosine)
    for value, same in zip(criteria(loss, SOFT).values(), criteria(loss, louder).values(), strict=True):
        torch.testing.assert_close(value, same)


def test_noise_type_is_cross_entropy_in_the_other_voice_s_frames() -> None:
    """Interference in the second frame only; speech in the first example, noise in the second."""
    mixture, target = torch.tensor([[[1.0], [3.0]]] * 2), torch.ones(2, 2, 1)
    logit = torch.tensor([[0.3, -0.4], [0.5, 0.6]])
    compared = Comparison(torch.ones(2, 2, 1), mixture, target, torch.ones(2, 2, 1))
    value = noise_type(logit, compared, torch.tensor([1.0, 0.0]))
    p = torch.sigmoid(logit)
    expected = -(torch.log(1 - p[0, 0]) + torch.log(p[0, 1]) + torch.log(1 - p[1]).sum()) / 4
    torch.testing.assert_close(value, expected)


# ---------------------------------------------------------------- gradients and refusals


@pytest.mark.parametrize("name", [*SPECTRAL, "absent"])
@pytest.mark.parametrize("complex_mask", [False, True])
@pytest.mark.parametrize("waves", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_stay_finite_on_silence(
    name: str, complex_mask: bool, waves: bool, dtype: torch.dtype
) -> None:
    spectral = Spectral(16, 8, 16)
    noise, nothing = 0.1 * torch.randn(2, 32), torch.zeros(2, 32)
    for mixture, target in ((nothing, nothing), (noise, nothing), (noise, noise), (nothing, noise)):
        for start in (0.0, 1.0):
            shape = (2, 5, 9, 2) if complex_mask else (2, 5, 9)
            raw = torch.full(shape, start, dtype=dtype, requires_grad=True)
            mask, x, s = raw.float(), spectral(mixture), spectral(target)
            turn = x.conj() * s / (x.abs() * s.abs()).clamp_min(1e-12)
            gain = torch.view_as_complex(mask) if complex_mask else mask
            signals = (spectral.inverse(x * gain, 32), target, mixture) if waves else None
            compared = Comparison(mask, x.abs(), s.abs(), turn.real, turn.imag, signals)
            value = criteria(only(**{name: 1.0}), compared)[name]
            value.backward()
            assert value.isfinite()
            assert raw.grad is not None and raw.grad.isfinite().all()


def test_what_cannot_be_computed_is_refused() -> None:
    ones = torch.ones(1, 2, 3)
    for name in ("si_sdr", "power_law_complex"):
        with pytest.raises(ValueError, match="needs the phase"):
            criteria(only(**{name: 1.0}), Comparison(ones, ones, ones))
    with pytest.raises(ValueError, match="phase_sensitive needs the phase"):
        criteria(only(power_law=1.0, target="phase_sensitive"), Comparison(ones, ones, ones))
    for overrides, words in (
        (["loss.power_law=0"], "needs a weight above 0"),
        (["loss.srl.beta=0.3"], "need waveforms"),
        (["loss={power_law: 0, snr: 1, target: phase_sensitive}"], "no effect without one of magnitude_mse"),
        (["loss.target=phase_sensitive", "network.mask=complex", "store.kind=wave"], "gives the phase, too"),
        (["loss.srl.beta=0.3", "store.kind=wave", "train.embedder=joint"], "need a frozen embedder"),
        (["loss.srl.beta=0.3", "store.kind=wave", "data.reverse=true"], "all but the reference's voice"),
        (["loss.noise_type=1"], "network lite, not voicefilter"),
        (["loss.blind=1"], "voices of blind_blstm, not voicefilter"),
        (["network={kind: lite, suppression: adaptive}"], "the head that loss.noise_type trains"),
        (["network.embedding=none", "train.embedding_noise=0.1"], "no embedder"),
        (["network.embedding=none", "train.embedding_mix=0.1"], "no embedder"),
        (["train.remix=1"], "train.remix: needs waveforms"),
        (["train.remix=1", "store.kind=wave", "data.reverse=true"], "with data.reverse that is the voice"),
        (
            ["train.remix=1", "store.kind=wave", "data.reverberation={share: 0.5, target: early}"],
            "the voice's own room",
        ),
        (["network.mask=complex"], "network.mask complex: needs the phase"),
        (["network.mask=complex", "store.kind=wave", "network.input=log"], "which have no log"),
    ):
        with pytest.raises(UserError, match=words):
            load_config(None, overrides)


# ---------------------------------------------------------------- speaker representation


def embedders() -> dict[str, Embedder]:
    torch.manual_seed(0)
    found = {
        "resemblyzer": DVector(**{**RESEMBLYZER, "hidden": 16, "dim": 8}),
        "mindslab": DVector(**{**MINDSLAB, "hidden": 16, "dim": 8}),
        "paper": DVector(hidden=16, projection=8, dim=8),
        "vggm": VggM(n_fft=512, dim=8),
    }
    for embedder in found.values():
        embedder.eval().requires_grad_(False)
    return found


def test_distances_equal_their_formulas() -> None:
    anchor, estimate, residual = torch.tensor([[[3.0, 4.0]], [[1.0, 0.0]], [[0.0, 2.0]]])
    near = ((0.6 - 1) ** 2 + 0.8**2) ** 0.5
    far = (0.6**2 + (0.8 - 1) ** 2) ** 0.5
    assert distance(anchor, estimate).item() == pytest.approx(near)
    assert srl(anchor, estimate).item() == pytest.approx(near)
    assert triplet_srl(anchor, estimate, residual, 1.0).item() == pytest.approx(near - far + 1)
    assert triplet_srl(anchor, residual, estimate, 0.1).item() == 0
    same = torch.tensor([[1.0, 2.0]], requires_grad=True)
    distance(same, same.detach()).sum().backward()
    assert same.grad is not None and same.grad.isfinite().all()


@pytest.mark.parametrize("name", list(embedders()))
@pytest.mark.parametrize("anchor", ["reference", "clean"])
def test_the_estimate_is_embedded_with_gradients_through_the_frozen_embedder(name: str, anchor: str) -> None:
    embedder = embedders()[name]
    before = {key: value.clone() for key, value in embedder.state_dict().items()}
    target, other = (torch.from_numpy(np.stack([tone_voice(v, 2.0, n) for v in (0, 1, 2)])) for n in (0, 5))
    target[2] = 0  # nobody is asked for in the third: it does not count
    mixture, references = target + other.flip(0), torch.randn(3, 8)
    gain = torch.full((3, 1), 0.7, requires_grad=True)
    estimate = gain * mixture + 0.1 * other
    ones = torch.ones(3, 1, 1)
    silent_target = torch.tensor([1.0, 1.0, 0.0])[:, None, None]
    compared = Comparison(ones, ones, silent_target, waves=(estimate, target, mixture))
    option = {"beta": 0.3, "anchor": anchor}
    loss = only(srl=option, triplet_srl={**option, "alpha": 0.5})
    values = speaker_criteria(loss, loss.weights, embedder, compared, references, 16000)

    vectors = [embedder.embed(list(wave[:2])).detach() for wave in (estimate, mixture - estimate, target)]
    unit = [
        v / v.norm(dim=1, keepdim=True)
        for v in (references[:2] if anchor == "reference" else vectors[2], *vectors)
    ]
    near, far = ((unit[0] - unit[k]).norm(dim=1) for k in (1, 2))
    torch.testing.assert_close(values["srl"].detach(), near.mean(), atol=1e-5, rtol=0)
    expected = (near - far + 0.5).clamp_min(0).mean()
    torch.testing.assert_close(values["triplet_srl"].detach(), expected, atol=1e-5, rtol=0)

    (values["srl"] + values["triplet_srl"]).backward()
    assert gain.grad is not None and gain.grad.isfinite().all()
    assert (gain.grad[:2] != 0).all() and gain.grad[2] == 0
    assert all(torch.equal(value, before[key]) for key, value in embedder.state_dict().items())


@pytest.mark.parametrize("name", list(embedders()))
def test_a_silent_estimate_has_a_finite_speaker_loss(name: str) -> None:
    target = torch.from_numpy(tone_voice(0, 2.0, 0))[None]
    estimate = torch.zeros_like(target, requires_grad=True)
    ones = torch.ones(1, 1, 1)
    loss = only(srl={"beta": 1.0, "anchor": "clean"}, triplet_srl={"beta": 1.0})
    compared = Comparison(ones, ones, ones, waves=(estimate, target, target))
    values = speaker_criteria(loss, loss.weights, embedders()[name], compared, torch.randn(1, 8), 16000)
    torch.stack(list(values.values())).sum().backward()
    assert all(value.isfinite() for value in values.values())
    assert estimate.grad is not None and estimate.grad.isfinite().all()


def test_another_rate_is_resampled_for_the_embedder() -> None:
    embedder, ones = embedders()["resemblyzer"], torch.ones(1, 1, 1)
    loss = only(srl={"beta": 1.0, "anchor": "clean"})
    distances = []
    for rate in (16000, 16384):
        waves = [torch.from_numpy(tone_voice(v, 2.0, 0, rate))[None] for v in (0, 1, 2)]
        compared = Comparison(ones, ones, ones, waves=(waves[0], waves[1], waves[2]))
        values = speaker_criteria(loss, loss.weights, embedder, compared, torch.randn(1, 8), rate)
        distances.append(values["srl"].item())
    assert distances[0] == pytest.approx(distances[1], abs=0.02)


def tiny_objective(overrides: list[str], embedder: Embedder) -> SeparatorObjective:
    torch.manual_seed(0)
    small = ["audio.n_fft=256", "audio.win_length=256", "audio.hop_length=128", "train.precision=fp32"]
    network = ["network.channels=4", "network.lstm_dim=8", "network.fc1_dim=8"]
    config = load_config(None, [*small, *network, *overrides])
    return SeparatorObjective(Separator(config, embedder), embedder_learns=False)


def wave_batch() -> dict[str, Tensor]:
    target = torch.from_numpy(np.stack([tone_voice(v, 2.0, 0) for v in (0, 1)]))
    mixture = target + torch.from_numpy(np.stack([tone_voice(v, 2.0, 1) for v in (2, 3)]))
    torch.manual_seed(1)
    return {
        "mixture_wave": mixture,
        "target_wave": target,
        "embedding": torch.randn(2, 8),
        "other_voice": torch.ones(2),
    }


def blind_objective(*overrides: str) -> SeparatorObjective:
    network = "network={kind: blind_blstm, front_dim: 8, lstm_dim: 8, choice_dim: 5}"
    torch.manual_seed(0)
    small = ["audio.n_fft=256", "audio.win_length=256", "audio.hop_length=128", "train.precision=fp32"]
    config = load_config(None, [*small, network, "store.kind=wave", *overrides])
    return SeparatorObjective(Separator(config, embedders()["resemblyzer"]), embedder_learns=False)


@pytest.mark.parametrize("mask", ["sigmoid", "complex"])
def test_the_rest_of_a_batch_is_the_mixture_without_the_target(mask: str) -> None:
    objective = blind_objective("loss={blind: 1}", f"network.mask={mask}")
    batch = wave_batch()
    found = rest_of(objective.with_spectra(batch))
    other = {**batch, "target_wave": batch["mixture_wave"] - batch["target_wave"]}
    expected = objective.with_spectra(other)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if name in ("cosine", "sine"):  # where rounding is small beside it
            loud = expected["target"] > 0.05
            torch.testing.assert_close(found[name][loud], value[loud], atol=2e-3, rtol=0)
        else:
            torch.testing.assert_close(found[name], value, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    "loss", ["power_law: 1", "power_law: 0, si_sdr: 1", "power_law: 1, snr: 0.1, mask_mse: 1"]
)
def test_blind_voices_are_compared_whichever_way_round_fits(loss: str) -> None:
    objective = blind_objective(f"loss={{blind: 1, relative: true, {loss}}}")
    batch = objective.with_spectra(wave_batch())
    rest = rest_of(batch)
    ideal, other = (b["target"] / (batch["target"] + rest["target"] + 1e-6) for b in (batch, rest))
    torch.manual_seed(2)
    ideal, other = (0.8 * m + 0.1 * torch.rand_like(m) for m in (ideal, other))

    def single(mask: Tensor, source: dict[str, Tensor]) -> Tensor:
        values = criteria(objective.config.loss, objective._compare(mask, source))
        return torch.stack([objective.weights[name] * value for name, value in values.items()]).sum()

    expected = (single(ideal, batch) + single(other, rest)) / 2
    order = torch.stack([ideal, other], 1)
    mixed = torch.stack([order[0], order[1].flip(0)])  # one example this way round, one the other
    for voices in (order, order.flip(1), mixed):
        torch.testing.assert_close(objective._blind(voices, batch), expected)
    assert objective._blind(order[[1, 0]], batch) > expected  # of other examples


def test_blind_voices_learn_by_their_own_criterion_and_by_the_choice() -> None:
    for blind in (0, 1):
        objective = blind_objective(f"loss.blind={blind}").train()
        values = objective(wave_batch())
        assert ("blind" in values) == bool(blind)
        expected = sum(weight * values[name] for name, weight in objective.weights.items() if weight)
        torch.testing.assert_close(values["loss"], expected)
        values["loss"].backward()
        network = objective.separator.network
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("name", ["resemblyzer", "vggm"])
def test_the_speaker_loss_teaches_the_network_and_not_the_embedder(name: str) -> None:
    options = ["store.kind=wave", "loss.power_law=0", "loss.magnitude_mse=1e-20", "loss.triplet_srl.beta=1"]
    objective = tiny_objective(options, embedders()[name]).train()
    values = objective(wave_batch())
    values["loss"].backward()
    learnt = [p for p in objective.separator.network.parameters() if p.grad is not None]
    assert any((p.grad != 0).any() for p in learnt)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in learnt)
    embedder: nn.Module | None = objective.separator.embedder
    assert embedder is not None and not embedder.training
    assert all(p.grad is None for p in embedder.parameters())


def test_the_speaker_loss_starts_late() -> None:
    options = ["store.kind=wave", "loss.srl={beta: 0.3, start_epoch: 2, start_step: 7}"]
    objective = tiny_objective(options, embedders()["resemblyzer"])
    for step, epoch, expected in ((0, 0, False), (9, 1, False), (6, 2, False), (7, 2, True)):
        objective.weights = objective.weights_at(step, epoch)
        assert ("srl" in objective(wave_batch())) == expected
    values = objective(wave_batch())
    torch.testing.assert_close(values["loss"], values["power_law"] + 0.3 * values["srl"])


def test_stored_magnitudes_and_waveforms_teach_the_same(tmp_path: Path) -> None:
    """Where no waveform is compared, a batch of spectra gives the loss that its waveforms give."""
    objective = tiny_objective(["loss.power_law_complex=0.1"], embedders()["resemblyzer"]).eval()
    batch = wave_batch()
    with torch.no_grad():
        spectra = objective.with_spectra(batch)
        for name in ("mixture_wave", "target_wave", "spectrum"):
            del spectra[name]
        torch.testing.assert_close(objective(spectra)["loss"], objective(batch)["loss"])


@pytest.mark.parametrize(
    "option", [*(f"{name}=1" for name in [*SPECTRAL, "absent"]), "target=phase_sensitive"]
)
def test_every_criterion_alone_learns_from_stored_magnitudes_and_from_waveforms(option: str) -> None:
    options = [f"loss.power_law={1 if 'target' in option else 1e-20}", f"loss.{option}"]
    objective = tiny_objective(options, embedders()["resemblyzer"])
    batch = wave_batch()
    batch["target_wave"][0] = 0.0
    spectra = SeparatorObjective.with_spectra(objective, batch)
    stored = ["mixture", "target", "embedding", *(["cosine"] if objective.config.loss.needs_phase else [])]
    losses = []
    for examples in ({key: spectra[key] for key in stored}, batch):
        objective.zero_grad()
        loss = objective.eval()(examples)["loss"]
        loss.backward()
        gradients = [p.grad for p in objective.separator.network.parameters() if p.grad is not None]
        assert gradients and all(g.isfinite().all() for g in gradients) and any(g.any() for g in gradients)
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], abs=0.2)  # dB; squared Hann windows at 50 % do not sum to 1


def test_embeddings_are_drawn_towards_others_of_their_batch_and_keep_their_length() -> None:
    torch.manual_seed(0)
    embedding = torch.eye(8) * torch.arange(1.0, 9.0)[:, None]
    assert mix_embeddings(embedding, 0.0) is embedding
    mixed = mix_embeddings(embedding, 0.4)
    torch.testing.assert_close(mixed.norm(dim=-1), embedding.norm(dim=-1))
    assert (mixed.argmax(dim=-1) == torch.arange(8)).float().mean() > 0.5 and (mixed != embedding).any()
    assert ((mixed > 0).sum(dim=-1) <= 2).all() and (mixed >= 0).all()
