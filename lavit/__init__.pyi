from . import kernels as kernels
from .acceleration import accelerate as accelerate
from .acceleration import restore as restore
from .language.configuration import LaVITConfig as LaVITConfig
from .language.model import LaVIT as LaVIT
from .language.processing import LaVITProcessor as LaVITProcessor
from .pixels.conditioner import NegativeEmbeds as NegativeEmbeds
from .pixels.conditioner import PixelConditioner as PixelConditioner
from .pixels.pipeline import LaVITPixelPipeline as LaVITPixelPipeline
from .pixels.unet import SmallUNet as SmallUNet
from .tokenizer.configuration import LaVITTokenizerConfig as LaVITTokenizerConfig
from .tokenizer.model import LaVITTokenizer as LaVITTokenizer
from .tokenizer.processing import LaVITImageProcessor as LaVITImageProcessor

__version__: str
