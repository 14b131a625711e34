"""The default: one file that is fast on OpenVINO and on ONNX Runtime CPU alike."""

from quantrim.targets.base import Target, ops

PORTABLE = Target(
    name="portable",
    engines=("openvino", "onnxruntime"),
    activation="u8",
    compute=ops("conv linear"),
    join=ops("add concat"),
    follow=ops("avg_pool global_avg_pool leaky_relu"),
    carry=ops("max_pool reshape flatten squeeze unsqueeze transpose split resize identity"),
    fuse=ops("relu clip"),
    shared_scale=ops("concat"),
    needs_output=ops("conv"),
    carries_codes=False,
    residual="both",
    bias="int32",
    int8_matmul=False,
    misread=ops("concat recurrent grid_sample"),
    notes={
        "misread": "OpenVINO 2026.4 loses the bias of the convolution before the quantizer",
        "needs_output": "ONNX Runtime 1.31 needs it; OpenVINO 2026.4 folds it into the convolution unless a "
        "float function follows",
        "follow leaky_relu": "ONNX Runtime 1.31 has QLinearLeakyRelu, OpenVINO 2026.4 takes the pair behind; "
        "residual adds stay INT8: 8 % and 3 % faster on a small DarkNet",
        "compute": "what both engines have INT8 kernels for; ONNX Runtime has none for ConvTranspose",
        "shared_scale": "OpenVINO 2026.4 needs it; ONNX Runtime doesn't mind",
    },
)
