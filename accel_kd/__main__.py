"""`python -m accel_kd`: the same program as `accel-kd`."""

import sys

from accel_kd.cli import main

if __name__ == "__main__":
    sys.exit(main())
