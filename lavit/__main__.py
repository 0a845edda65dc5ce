"""``python -m lavit`` is the command ``lavit``."""

import sys

from lavit.cli import main

sys.exit(main())
