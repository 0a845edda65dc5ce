from .command import main as main
from .config import QuickstartConfig as QuickstartConfig
from .run import run_quickstart as run_quickstart
from .summary_text import summary as summary
