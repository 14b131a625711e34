"""OpenVINO CPU: quantizers on inputs; the plug-in fuses activations and residual adds by itself."""

from quantrim.targets.base import Target

OPENVINO = Target(
    name="openvino",
    engines=("openvino",),
    activation="u8",
    compute=frozenset({"conv", "conv_transpose", "linear"}),
    join=frozenset({"add", "concat"}),
    follow=frozenset({"avg_pool", "global_avg_pool"}),
    carry=frozenset(
        {
            "max_pool",
            "reshape",
            "flatten",
            "squeeze",
            "unsqueeze",
            "transpose",
            "split",
            "depth_to_space",
            "space_to_depth",
            "resize",
            "identity",
        }
    ),  # fmt: skip
    fuse=frozenset(
        {
            "relu",
            "clip",
            "leaky_relu",
            "sigmoid",
            "hard_sigmoid",
            "hard_swish",
            "swish",
            "gelu",
            "tanh",
            "elu",
            "mish",
        }
    ),  # fmt: skip
    shared_scale=frozenset({"concat"}),
    needs_output=frozenset(),
    residual="both",
    bias="int32",
    int8_matmul=True,
    notes={},
)
