"""Token hierarchies, the patterns that order their prediction, prompts and sampling."""
