"""What every contestant needs, imported once and without a word, before processes are forked off; no device is
touched."""

from accel_kd.quietness import quieten_libraries

quieten_libraries()

import accel_kd.model_benchmark.contestant  # noqa: E402, F401
