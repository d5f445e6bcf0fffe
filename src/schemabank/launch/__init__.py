"""Launchers: a suite's runs in several processes, which share the work by leases on a folder.

`queue` holds units of work and who holds them, `rounds` what the units of a suite are, `worker` the
process that does them, `crew` the processes of this machine, `launchers` the ways to start them.
"""

__all__ = [
    "launchers",
]
