"""What the model loses when a group of channels goes."""
