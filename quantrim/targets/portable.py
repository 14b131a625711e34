"""The default: one file that is fast on OpenVINO and on ONNX Runtime CPU alike."""

from quantrim.targets.base import Target

PORTABLE = Target(
    name="portable",
    engines=("openvino", "onnxruntime"),
    activation="u8",
    compute=frozenset({"conv", "linear"}),
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
            "resize",
            "identity",
        }
    ),
    fuse=frozenset({"relu", "clip"}),
    shared_scale=frozenset({"concat"}),
    needs_output=frozenset({"conv"}),
    residual="both",
    bias="int32",
    int8_matmul=False,
    notes={},
)
