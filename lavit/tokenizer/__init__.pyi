from . import configuration as configuration
from . import model as model
from . import processing as processing
from .configuration import LaVITTokenizerConfig as LaVITTokenizerConfig
from .model import LaVITTokenizer as LaVITTokenizer
from .model import LaVITTokenizerOutput as LaVITTokenizerOutput
from .model import VisualTokens as VisualTokens
from .processing import LaVITImageProcessor as LaVITImageProcessor
