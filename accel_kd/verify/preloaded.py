"""What every rank of a verification needs, imported once, before ranks are forked off; no device is touched."""

import logging
import os
from threading import RLock

from tqdm import tqdm

from accel_kd.errors import UserError
from accel_kd.heavy_imports import heavy_imports

with heavy_imports():
    import accel_kd.distill
    import accel_kd.export.results_table
    import accel_kd.metrics.accuracy_and_f1
    import accel_kd.verify.reference  # noqa: F401
    from accel_kd.distributed.deepspeed_start import prepare_for_deepspeed

# Its own lock is one of processes, which those that are killed would leave behind.
tqdm.set_lock(RLock())

if os.environ.get("CUDA_VISIBLE_DEVICES") == "":  # asking torch would touch the devices
    try:
        prepare_for_deepspeed(has_device=False)
    except UserError as error:  # the ways that need it say so again
        logging.getLogger(__name__).warning("%s", error)
