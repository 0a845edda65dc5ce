"""The kinds of modules that are known, by family. Importing one of these modules registers its parts."""

from lavit.acceleration.families import decoder, encoder, generation, merger, tokenizer  # noqa: F401
