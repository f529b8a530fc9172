"""The kinds of published models that `hiermusic import` knows. A further one takes a line here."""

from hiermusic.pretrained import dac, encodec, encoders, spectrostream
from hiermusic.pretrained.family import Family

KINDS: dict[str, Family] = {
    "encodec": encodec.FAMILY,
    "dac": dac.FAMILY,
    "spectrostream": spectrostream.FAMILY,
    **encoders.FAMILIES,
}
