"""Sizes of a tokenizer that trains in a moment, as changes to the preset `small`."""

TINY = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 16,
    "encoder_depth": 1,
    "encoder_heads": 2,
    "merger_depth": 1,
    "decoder_depth": 1,
    "num_heads": 2,
    "num_codes": 12,
    "code_dim": 4,
    "projection_dim": 8,
}
