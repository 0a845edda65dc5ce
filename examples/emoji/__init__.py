"""The emoji world: a colour-emoji font drawn on plain backgrounds, all that is said of it true by construction."""
