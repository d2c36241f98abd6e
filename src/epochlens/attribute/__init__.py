"""attribute: attribution methods as pure functions of a model, images and targets."""
