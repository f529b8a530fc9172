"""Measurements of trained systems and the pages that show them."""
