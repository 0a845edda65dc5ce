"""The language model that reads and writes images and text."""
