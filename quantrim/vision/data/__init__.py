"""Pictures, labels, transforms."""
