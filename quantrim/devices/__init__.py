"""Other machines: what a verb needs is sent over ssh, run there, and its results are taken back."""

from quantrim.devices.host import Host, device_named, host_named
from quantrim.devices.job import Answer, HostLostError, Job, run_on, run_on_all, run_on_any

__all__ = [
    "Answer",
    "Host",
    "HostLostError",
    "Job",
    "device_named",
    "host_named",
    "run_on",
    "run_on_all",
    "run_on_any",
]
