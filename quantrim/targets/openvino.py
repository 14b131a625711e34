"""OpenVINO CPU: quantizers on inputs; the plug-in fuses activations and residual adds by itself."""

from quantrim.targets.base import Target, ops

OPENVINO = Target(
    name="openvino",
    engines=("openvino",),
    activation="u8",
    compute=ops("conv conv_transpose linear"),
    join=ops("add concat"),
    follow=ops("avg_pool global_avg_pool"),
    carry=ops(
        "max_pool reshape flatten squeeze unsqueeze transpose split resize identity"
        " depth_to_space space_to_depth"
    ),
    fuse=ops("relu clip leaky_relu sigmoid hard_sigmoid hard_swish swish gelu tanh elu mish"),
    shared_scale=ops("concat"),
    needs_output=ops(""),
    residual="both",
    bias="int32",
    int8_matmul=True,
    notes={},
)
