"""SAT and AAR (arXiv 2408.09027): a multi-scale audio tokenizer, and a model that predicts scale after scale.

SAT codes a window (one second) in 16 scales of 1 to 75 tokens. AAR predicts all tokens of a scale at once from the
coarser ones, in 16 passes (next-scale, block-causal). The baseline is the same transformer over the residual codes of
the same trunk, one token after another (flatten or delay, causal). Longer music is windows one after another: AAR's
windows read the last latent frames of the one before, the baseline's begin with its last codes.
"""

from hiermusic.systems.aar.measures import cross_entropy, inspect
from hiermusic.systems.aar.models import make_model
from hiermusic.systems.aar.songs import generate, program
from hiermusic.systems.aar.stages import STAGES, stage

__all__ = ["STAGES", "cross_entropy", "generate", "inspect", "make_model", "program", "stage"]
