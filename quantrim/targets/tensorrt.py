"""TensorRT explicit quantization: symmetric s8, quantizers on inputs only, residual on the identity branch."""

from quantrim.targets.base import Target, ops

TENSORRT = Target(
    name="tensorrt",
    engines=("tensorrt",),
    activation="s8",
    compute=ops("conv conv_transpose linear"),
    join=ops("add concat"),
    follow=ops("avg_pool global_avg_pool"),
    carry=ops("max_pool resize identity"),
    fuse=ops("relu clip leaky_relu sigmoid hard_sigmoid hard_swish swish gelu tanh elu mish"),
    shared_scale=ops("concat"),
    needs_output=ops(""),
    carries_codes=False,
    residual="identity",
    bias="float",
    int8_matmul=False,
    notes={
        "activation s8": "10: zero points other than 0 are refused outside DLA (TensorRT issues 2774, 4698)",
        "bias float": "10: a quantized bias is refused; the kernel adds it in float",
        "needs_output": "10: a Q behind a convolution stands in the way of its fusions",
        "residual": "10: Q/DQ on the identity branch lets the add fuse into the convolution (issue 1992)",
        "shared_scale": "10: one scale around a concat lets the Q/DQ pairs vanish",
        "fuse": "10: pointwise functions behind a convolution are fused; a Q between them is not",
    },
)
