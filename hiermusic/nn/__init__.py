"""Convolutions, attention and the one transformer."""
