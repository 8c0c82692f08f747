"""``python -m maskkit``, which is also what ``torchrun -m maskkit train ...`` starts."""

import sys

from maskkit.cli import main

sys.exit(main())
