"""Writers of QDQ ONNX and exporters of modules."""
