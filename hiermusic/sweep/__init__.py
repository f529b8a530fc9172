"""Sweeps: many runs of one configuration, listed and costed before any starts, and what they came to."""
