"""Khala (arXiv:2605.01790): a 64-layer codec, a causal backbone on layers 0 and 1, layer-wise super-resolution.

The backbone reads and predicts q0 q1 of every frame in turn (flatten, causal). The super-resolution model predicts
layer k of all frames at once from layers below k (layer-wise, full attention), trained together with causal
prediction of q0 so that it keeps listening to the words (Task 0).
"""

from hiermusic.systems.khala.measures import cross_entropy, inspect
from hiermusic.systems.khala.models import make_model
from hiermusic.systems.khala.songs import generate, program
from hiermusic.systems.khala.stages import STAGES, stage

__all__ = ["STAGES", "cross_entropy", "generate", "inspect", "make_model", "program", "stage"]
