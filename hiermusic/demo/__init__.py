"""Demos: everything of a system once, small; each is a list of verbs."""
