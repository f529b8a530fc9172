"""Decoding engines: how a trained model turns a layout into codes."""
