"""What to prune, as plain data that is checked where it is made."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, get_args

from quantrim.errors import ConfigError, did_you_mean
from quantrim.pruning.cost.solver import Limits
from quantrim.pruning.sensitivity.criteria import CRITERIA

#: How the shares of groups are chosen.
Method = Literal["marginal", "threshold"]


def as_paths(given: str | Iterable[str]) -> tuple[str, ...]:
    """Paths or globs; one alone may be given as it is."""
    return (given,) if isinstance(given, str) else tuple(given)


@dataclass(frozen=True, slots=True)
class PruneConfig:
    """A request.

    Attributes:
        ratio: share of the cost to remove, in (0, 1): of FLOPs, or of what another objective counts.
        channel_ratio: instead of ``ratio``, the share of channels to remove from every group.
        criterion: which units of a group go first.
        method: "marginal" weighs loss against cost group by group; "threshold" is PaddleSlim's common loss
            threshold, for which sensitivity must be measured.
        limits: allowed widths.
        protect: paths of layers whose own channels shall stay, or globs such as ``stage1.*``.
        seed: of random choices.

    Raises:
        ConfigError: a field holds what is not allowed; ``field`` names it.
    """

    ratio: float | None = None
    channel_ratio: float | None = None
    criterion: str = "l1"
    method: Method = "marginal"
    limits: Limits = field(default_factory=Limits)
    protect: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "protect", as_paths(self.protect))
        if self.ratio is not None and self.channel_ratio is not None:
            raise ConfigError(
                "give either ratio (share of the cost to remove) or channel_ratio.", field="channel_ratio"
            )
        for name in ("ratio", "channel_ratio"):
            share = getattr(self, name)
            if share is not None and not 0 < share < 1:
                raise ConfigError(f"{name} must be in (0, 1), it is {share}.", field=name)
        for name, legal in (("criterion", CRITERIA), ("method", get_args(Method))):
            word = getattr(self, name)
            if word not in legal:
                raise ConfigError(f"unknown {name} {word!r}{did_you_mean(word, legal)}", field=name)

    @property
    def of_channels(self) -> bool:
        """Whether the same share of channels goes from every group."""
        return self.channel_ratio is not None

    @property
    def share(self) -> float:
        """The ratio asked for, of whatever it counts.

        Raises:
            ConfigError: there is none.
        """
        share = self.ratio if self.channel_ratio is None else self.channel_ratio
        if share is None:
            raise ConfigError(
                "give either ratio (share of the cost to remove) or channel_ratio.", field="ratio"
            )
        return share
