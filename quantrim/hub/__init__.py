"""Model cards, and the way of a file to a hub and back."""

from quantrim.hub.cards import card_of, write_card
from quantrim.hub.transfer import pull, push

__all__ = ["card_of", "pull", "push", "write_card"]
