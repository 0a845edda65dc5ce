"""Images from files, and batches from images."""

from lavit.data.folder import ImageFolder
from lavit.data.images import ImageError, load_image
from lavit.data.stream import DataStream

__all__ = ["DataStream", "ImageError", "ImageFolder", "load_image"]
