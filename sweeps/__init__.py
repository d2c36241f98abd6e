"""Commands of a checkout, run as `python -m sweeps.NAME`, and the presets they read."""
