"""`python -m bench`, which is what `make bench` runs."""

import sys

from bench.train import main

sys.exit(main())
