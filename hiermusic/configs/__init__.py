"""The package's presets, one file a stage, and sweeps of them; read by name (`presets.py`), and yours to copy."""
