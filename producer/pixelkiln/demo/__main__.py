"""`python -m pixelkiln.demo [--out DIR]`."""

import sys

from pixelkiln.demo.run import main

if __name__ == "__main__":
    sys.exit(main())
