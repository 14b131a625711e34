"""The models, data and training of the vision tasks that quantrim quantizes and trims."""
