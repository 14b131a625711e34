"""ONNX Runtime CPU: a node runs INT8 only between DequantizeLinear and QuantizeLinear."""

from quantrim.targets.base import Target, ops

ONNXRUNTIME = Target(
    name="onnxruntime",
    engines=("onnxruntime",),
    activation="u8",
    compute=ops("conv linear"),
    join=ops("add concat mul"),
    follow=ops("avg_pool global_avg_pool sigmoid leaky_relu"),
    carry=ops("max_pool reshape flatten squeeze unsqueeze transpose split resize identity"),
    fuse=ops("relu clip"),
    shared_scale=ops(""),
    needs_output=ops("conv"),
    carries_codes=False,
    residual="both",
    bias="int32",
    int8_matmul=False,
    notes={
        "needs_output": "1.31: QDQ selectors want DQ -> node -> Q; a convolution without Q behind runs FP32",
        "join mul, follow sigmoid": "1.31: QLinearMul and QLinearSigmoid keep SiLU and gates in INT8",
        "shared_scale": "1.31: QLinearConcat rescales each input, so no common scale is needed",
        "activation u8": "1.31, x86: s8 activations are shifted to u8 by QDQS8ToU8; u8 saves that",
    },
)
