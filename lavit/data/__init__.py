"""Images from files, what is written about them, and batches from images."""

from lavit.data.annotations import AnnotationError, Annotations, CaptionItem, VQAItem, read_captions, read_vqa
from lavit.data.folder import ImageFolder
from lavit.data.images import ImageError, load_image
from lavit.data.stream import DataStream

__all__ = [
    "AnnotationError",
    "Annotations",
    "CaptionItem",
    "DataStream",
    "ImageError",
    "ImageFolder",
    "VQAItem",
    "load_image",
    "read_captions",
    "read_vqa",
]
