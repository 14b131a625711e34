"""An HTTP service around a model that quantrim exported: OpenVINO, micro-batches, one line for every error."""
