"""Waveform to codes and back: trunks, quantisers, discriminator and their objective."""
