"""Open, trainable acoustic-token music models in JAX: any token hierarchy, any order of prediction, one transformer."""
