"""Sounds in segments that are coded one by one, each with a loudness beside its codes, as EnCodec has it at 48 kHz."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from jaxtyping import Array, Float

from hiermusic.errors import UserError

_MOST = 1 << 24  # samples of a segment: as many as a stranger's configuration names would fill the memory


@dataclass(frozen=True)
class SegmentsConfig:
    """Segments of a sound: each begins a little before the one in front of it ends; the last ends where the sound does.

    What ends in front of a segment's last frame ends with that segment, though the next one would begin before.

    Args:
      samples: of a segment.
      overlap: share of it that its neighbour codes again; the two are faded over into each other.
      hop: samples a latent frame.
      loudness: that of each segment (`scale_of`) where codes have no scales, as those that a token model makes.
    Raises:
      UserError: a number out of its range.
    """

    samples: int
    overlap: float
    hop: int
    loudness: float

    def __post_init__(self):
        if not 1 <= self.samples <= _MOST or not 0 <= self.overlap < 1 or not 0 < self.loudness <= 1:
            raise UserError(
                f"segments of {self.samples} samples with an overlap of {self.overlap} at a loudness of "
                f"{self.loudness}: give 1 to {_MOST:,} samples, a share below 1, and a share of full scale"
            )

    @property
    def stride(self) -> int:
        """Samples from one segment's beginning to the next one's."""
        return max(1, int((1.0 - self.overlap) * self.samples))

    @property
    def frames(self) -> int:
        """Latent frames of a whole segment."""
        return -(-self.samples // self.hop)

    @property
    def samples_per_frame(self) -> float:
        """On average over a long sound: less than `hop`, as what segments share is coded twice."""
        return float(Fraction(self.stride, self.frames))

    def packets(self, length: int) -> int:
        """Frames of a sound of so many samples."""
        whole = max(self._count(length) - 1, 0)
        return whole * self.frames + -(-(length - whole * self.stride) // self.hop)

    def length(self, packets: int) -> int:
        """Samples that so many frames are decoded to."""
        whole = max(-(-packets // self.frames) - 1, 0)
        last = whole * self.stride + (packets - whole * self.frames) * self.hop
        return max(last, (whole - 1) * self.stride + self.frames * self.hop if whole else 0)

    def cut(self, wav_LC: Float[np.ndarray, "L C"]) -> list[Float[np.ndarray, "l C"]]:
        """The segments of a sound."""
        starts = (self.stride * i for i in range(self._count(len(wav_LC))))
        return [wav_LC[start : start + self.samples] for start in starts]

    def _count(self, length: int) -> int:
        """Segments of so many samples. Behind one that lacks a frame, and so ends the sound, none is begun: where codes
        lie one after another, all but the last segment have as many."""
        lacking = (self.frames - 1) * self.hop
        return min(-(-length // self.stride), 1 + max(-(-(length - lacking) // self.stride), 0))

    def scales(self, wav_LC: Float[np.ndarray, "L C"]) -> Float[np.ndarray, "N"]:
        """The scale of each segment, float32: what it is divided by before it is coded."""
        return np.asarray([scale_of(part_LC) for part_LC in self.cut(wav_LC)], np.float32)

    def join(self, parts: Sequence[Float[np.ndarray, "l C"]]) -> Float[np.ndarray, "L C"]:
        """Decoded segments as one sound, each weighed by a triangle over its length where it meets others."""
        ramp_l = np.arange(1, self.frames * self.hop + 1) / (self.frames * self.hop + 1)
        weight_l1 = np.minimum(ramp_l, 1 - ramp_l)[:, None]
        length = max(i * self.stride + len(part_LC) for i, part_LC in enumerate(parts))
        whole_LC, sum_L1 = np.zeros((length, parts[0].shape[1])), np.zeros((length, 1))
        for i, part_LC in enumerate(parts):
            place, weight = slice(i * self.stride, i * self.stride + len(part_LC)), weight_l1[: len(part_LC)]
            whole_LC[place] += weight * part_LC
            sum_L1[place] += weight
        whole_LC /= sum_L1
        return whole_LC.astype(np.float32)


def scale_of(wav_LC: Float[Array, "... L C"]) -> Float[Array, "..."]:
    """Loudness of sounds: the root mean square of their channels' mean, never zero; of NumPy's and of JAX's arrays."""
    mono_L = wav_LC.mean(-1)
    return (mono_L * mono_L).mean(-1) ** 0.5 + 1e-8
