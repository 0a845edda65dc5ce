"""Worlds and recipes to start one's own from. Run from the repository; not installed with lavit."""
