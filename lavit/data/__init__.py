"""Images from files, and batches from images."""

from lavit.data.folder import ImageFolder
from lavit.data.images import ImageError, load_image

__all__ = ["ImageError", "ImageFolder", "load_image"]
