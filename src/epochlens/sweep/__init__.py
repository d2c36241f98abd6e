"""sweep: plans the grid, trains it with Ray Tune, and analyses what the store holds. The one user of Ray."""
