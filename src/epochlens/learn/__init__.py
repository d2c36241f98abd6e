"""learn: datasets, models and training trajectories that equal the plain PyTorch loop."""
