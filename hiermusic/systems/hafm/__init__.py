"""HAFM (arXiv 2604.09054): a vocal in, its accompaniment out.

Three causal models, each a pattern behind a prefix: what the vocal means gives what the accompaniment means, both give
its coarse codes, and these the fine ones.
"""
