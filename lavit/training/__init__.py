"""The three stages of training, each with the same four rooms, and the engine that drives them all."""
