"""What a channel costs, and which channels to give for a budget."""
