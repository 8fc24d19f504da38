"""`python -m pixelkiln_worker` starts the workers of this machine."""

import sys

from pixelkiln_worker.launcher import main

if __name__ == "__main__":
    sys.exit(main())
