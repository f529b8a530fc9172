"""Waveforms: reading, writing, resampling, spectra and the measures taken on them."""
