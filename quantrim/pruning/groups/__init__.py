"""Channel groups: what must be removed together, found on integer slots and proven by trial."""

from quantrim.pruning.groups.groups import ChannelGraph, ChannelGroup, Frozen, Removal, channel_graph, joined
from quantrim.pruning.groups.walk import Member

# the self-check is not here: it imports surgery, which imports this room
__all__ = ["ChannelGraph", "ChannelGroup", "Frozen", "Member", "Removal", "channel_graph", "joined"]
