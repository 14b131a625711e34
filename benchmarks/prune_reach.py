"""How much of vision transformers can be pruned: heads, embeddings, feed-forward layers, blocks.

    python benchmarks/prune_reach.py

Small configurations with random weights at 64x64, as only structure counts. Printed are the share of FLOPs that
can go at most by channels and heads (a tenth of each group stays), what is frozen besides the outputs, and how
many residual blocks may go as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import timm
import torch
from torch import nn
from torchvision.models.swin_transformer import SwinTransformer
from torchvision.models.vision_transformer import VisionTransformer

from quantrim.pruning import Limits, survey
from quantrim.pruning.cost.cost import full_widths, macs_model
from quantrim.pruning.cost.solver import least_units

NETS: dict[str, Callable[[], nn.Module]] = {
    "timm vit_tiny": lambda: timm.create_model(
        "vit_tiny_patch16_224", img_size=64, num_classes=10, depth=2
    ),
    "torchvision ViT": lambda: VisionTransformer(
        64, 16, num_layers=2, num_heads=3, hidden_dim=96, mlp_dim=192, num_classes=10
    ),
    "timm swin_tiny": lambda: timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=64, window_size=4, embed_dim=48, depths=(2, 2),
        num_heads=(3, 6), num_classes=10,
    ),
    "torchvision Swin": lambda: SwinTransformer([4, 4], 48, [2, 2], [3, 6], [4, 4], num_classes=10),
}  # fmt: skip


def main() -> None:
    print("| net | largest ratio | groups | frozen besides outputs | blocks |\n|---|---|---|---|---|")
    limits = Limits(align=1, min_channels=1)
    for name, build in NETS.items():
        torch.manual_seed(0)
        graph = survey(build().eval(), torch.randn(1, 3, 64, 64), limits=replace(limits, blocks=True)).graph
        cost, least = macs_model(graph), least_units(graph.groups, limits)
        ratio = 1 - float(cost(least)) / float(cost(full_widths(graph)))
        frozen = [one.layer for one in graph.frozen if "output of the model" not in one.reason]
        groups = len(graph.groups) - len(graph.blocks)
        print(
            f"| {name} | {ratio:.3f} | {groups} | {', '.join(frozen) or '-'} | {len(graph.blocks)} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
