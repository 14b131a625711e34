"""OpenVINO CPU: quantizers on inputs; the plug-in fuses activations and residual adds by itself."""

from quantrim.targets.base import Target, ops

OPENVINO = Target(
    name="openvino",
    engines=("openvino",),
    activation="u8",
    compute=ops("conv conv_transpose linear"),
    join=ops("add concat"),
    follow=ops("avg_pool global_avg_pool"),
    carry=ops("max_pool reshape flatten squeeze unsqueeze transpose split resize identity depth_to_space"),
    fuse=ops("relu clip leaky_relu sigmoid hard_swish swish gelu tanh elu mish softplus"),
    shared_scale=ops("concat"),
    needs_output=ops(""),
    carries_codes=True,
    residual="both",
    bias="int32",
    int8_matmul=True,
    notes={
        "needs_output": "2026.4: convolutions run INT8 whatever follows; a pair read by a float op costs a "
        "reference Convert and breaks the fusion of SiLU, HardSwish and GELU into the convolution",
        "activation u8": "2026.4: s8 affine activations run slower than FP32; u8 affine is the fast form",
        "shared_scale": "2026.4: a concat of different scales falls out of INT8",
        "carry": "2026.4: space_to_depth runs in float, and a convolution that reads its codes does, too",
        "fuse": "2026.4: a hard_sigmoid by itself is a layer of its own, in float",
        "int8_matmul": "2026.4: where the CPU has AMX; with VNNI alone the product runs in float "
        "(`quantrim target learn` asks)",
        "compute conv_transpose": "2026.4: deconvolution has an INT8 kernel",
    },
)
