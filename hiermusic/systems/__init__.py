"""The published systems, each composed of the rooms above."""
