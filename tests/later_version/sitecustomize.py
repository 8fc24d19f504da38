"""Python imports this when it starts with this folder on its path: a worker of the next version."""

from pixelkiln_shared import jobs

jobs.SPEC_VERSION += 1
