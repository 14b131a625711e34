"""The float teacher's loss: zero at agreement, gradients for the student alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from quantrim.errors import ConfigError
from quantrim.qat import QAT, Distillation, Distiller, distillation_loss

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 3))


def test_the_loss_is_the_softened_kl_divergence_of_every_position():
    student, teacher = torch.randn(2, 5, 3, 3), torch.randn(2, 5, 3, 3)
    p, q = F.softmax(teacher / 3, 1), F.softmax(student / 3, 1)
    expected = (p * (p / q).log()).sum(1).mean() * 9
    torch.testing.assert_close(distillation_loss(student, teacher, 3.0), expected)


def test_auxiliary_outputs_without_a_teacher_are_left_out():
    main, aux, teacher = torch.randn(2, 5), torch.randn(2, 5), torch.randn(2, 5)
    expected = distillation_loss(main, teacher)
    torch.testing.assert_close(distillation_loss([main, aux], [teacher]), expected)


def test_the_teacher_gets_no_gradients_and_equal_networks_no_loss():
    student, teacher = net(), net()
    distiller = Distiller(student, teacher, Distillation(features=("0", "2")))
    loss = distiller(student(X), X)
    assert loss.item() == pytest.approx(0, abs=1e-9)
    loss = distiller(student(2 * X), X)
    loss.backward()
    assert student[0].weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in teacher.parameters())


def test_a_quantized_student_comes_nearer_to_its_teacher():
    teacher = net()
    qat = QAT(copy.deepcopy(teacher), X)
    with torch.no_grad():
        qat.module[0].weight.add_(0.1 * torch.randn_like(qat.module[0].weight))
    distiller = Distiller(qat.module, teacher, Distillation(features=("1",), feature_weight=0.5))
    optimizer = torch.optim.Adam(qat.parameter_groups(0.01))
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = distiller(qat.module.train()(X), X)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    distiller.remove()
    assert not any(m._forward_hooks for m in teacher.modules())


def test_an_unknown_feature_is_named():
    with pytest.raises(ConfigError, match="feature '7' is no module"):
        Distiller(net(), net(), Distillation(features=("7",)))


def test_features_whose_width_was_pruned_are_refused():
    student, teacher = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 3)), net()[::2]
    distiller = Distiller(student, teacher, Distillation(features=("0",)))
    with pytest.raises(ConfigError, match=r"feature '0' is \(4, 6, 6, 6\).*its width was pruned"):
        distiller(student(X), X)
