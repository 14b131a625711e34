"""The default: one file that is fast on OpenVINO and on ONNX Runtime CPU alike."""

from quantrim.targets.base import Target, ops

PORTABLE = Target(
    name="portable",
    engines=("openvino", "onnxruntime"),
    activation="u8",
    compute=ops("conv linear"),
    join=ops("add concat"),
    follow=ops("avg_pool global_avg_pool"),
    carry=ops("max_pool reshape flatten squeeze unsqueeze transpose split resize identity"),
    fuse=ops("relu clip"),
    shared_scale=ops("concat"),
    needs_output=ops("conv"),
    residual="both",
    bias="int32",
    int8_matmul=False,
    notes={},
)
