"""Stage 0: an image encoder of one's own, from a folder of images alone or with their captions. Its rooms: `recipe`,
`data`, `objective`, `train`, `command`."""

from lavit.compatibility import forward

# Once a module, of the encoder for the shapes world; its names are there now.
__getattr__ = forward(__name__, ["lavit.training.tokenizer.pretrain_encoder"])
