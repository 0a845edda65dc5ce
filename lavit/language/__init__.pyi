from .configuration import LaVITConfig as LaVITConfig
from .generation_inputs import NonFiniteScores as NonFiniteScores
from .guidance import SamplingSettings as SamplingSettings
from .loss import linear_cross_entropy as linear_cross_entropy
from .model import LaVIT as LaVIT
from .model import LaVITOutput as LaVITOutput
from .processing import LaVITProcessor as LaVITProcessor
from .vocabulary import Vocabulary as Vocabulary
