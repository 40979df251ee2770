"""The light that the values of images and videos stand for: sRGB, and the two transfer functions of HDR."""

from __future__ import annotations

import numpy as np

PQ, HLG = 16, 18  # ITU-T H.273 has these codes for the transfer functions of HDR.
WHITE_NITS = 203  # ITU-R BT.2408 places the white of ordinary images here in HDR with PQ, in cd/m2,
HLG_WHITE = 0.265  # and here in HDR with HLG: it is the scene light of a signal of 75 %.
# SMPTE ST 2084 (PQ), as in ITU-R BT.2100, table 4
PQ_M1, PQ_M2, PQ_C1, PQ_C2, PQ_C3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
PQ_PEAK_NITS = 10_000
# Hybrid log-gamma (HLG): ITU-R BT.2100, table 5
HLG_A, HLG_B, HLG_C = 0.17883277, 0.28466892, 0.55991073


def from_srgb(value: np.ndarray) -> np.ndarray:
    """The light of sRGB values from 0 to 1."""
    return np.asarray(np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4))


def to_srgb(light: np.ndarray) -> np.ndarray:
    """The sRGB values of amounts of light from 0 to 1."""
    return np.asarray(np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055))


def from_hdr(signal: np.ndarray, transfer: int) -> np.ndarray:
    """The light, 1 for ordinary white and more beyond it, of a signal from 0 to 1 with PQ or HLG."""
    if transfer == PQ:
        power = signal ** (1 / PQ_M2)
        share = (np.maximum(power - PQ_C1, 0) / (PQ_C2 - PQ_C3 * power)) ** (1 / PQ_M1)
        return np.asarray(share * PQ_PEAK_NITS / WHITE_NITS)
    scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - HLG_C) / HLG_A) + HLG_B) / 12)
    return np.asarray(scene / HLG_WHITE)


def to_hdr(light: np.ndarray, transfer: int) -> np.ndarray:
    """The signal with PQ or HLG of an amount of light, the inverse of `from_hdr`."""
    if transfer == PQ:
        power = (light * WHITE_NITS / PQ_PEAK_NITS) ** PQ_M1
        return np.asarray(((PQ_C1 + PQ_C2 * power) / (1 + PQ_C3 * power)) ** PQ_M2)
    scene = light * HLG_WHITE
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), HLG_A * np.log(np.maximum(12 * scene, 1) - HLG_B) + HLG_C)
