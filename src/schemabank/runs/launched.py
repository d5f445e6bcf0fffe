"""How a call trains its runs, by itself or by worker processes; what a run costs names it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Launched:
    """What trains a run.

    Attributes:
        launcher: as ``--launch`` names it: ``local``, ``gpus`` or ``ray``.
        workers: among how many processes the call shares its runs; 1 where it trains them itself.
    """

    launcher: str = "local"
    workers: int = 1


BY_ITSELF = Launched()
