"""`python -m vitgraft` is the command `vitgraft`."""

import sys

from vitgraft.cli import main

sys.exit(main())
