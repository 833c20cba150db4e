"""`python -m luthier` is the program `luthier`."""

import sys

from luthier.cli.main import main

sys.exit(main())
