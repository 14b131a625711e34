import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from quantrim.errors import ConfigError
from quantrim.vision import losses
from quantrim.vision.metrics import ConfusionMatrix, TopK

LOGITS = torch.randn(2, 3, 6, 7, generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(0, 3, (2, 6, 7), generator=torch.Generator().manual_seed(1))
HOLED = LABELS.clone()
HOLED[:, :2] = 255


def test_cross_entropy_is_the_mean_over_the_labels_that_count():
    kept = HOLED != 255
    each = -LOGITS.log_softmax(1).gather(1, LABELS[:, None])[:, 0]
    assert losses.cross_entropy(LOGITS, HOLED) == pytest.approx(float(each[kept].mean()), rel=1e-5)


def test_a_batch_of_ignored_labels_costs_nothing_and_is_no_nan():
    nothing = torch.full_like(LABELS, 255)
    for loss in (
        losses.cross_entropy,
        losses.ohem_cross_entropy,
        losses.focal_loss,
        losses.lovasz_softmax,
        losses.binary_cross_entropy,
    ):
        assert float(loss(LOGITS, nothing)) == 0


def test_ohem_keeps_pixels_below_the_threshold_and_at_least_so_many():
    each = F.cross_entropy(LOGITS, LABELS, reduction="none").flatten()
    hard = each[torch.exp(-each) <= 0.3]
    assert losses.ohem_cross_entropy(LOGITS, LABELS, thresh=0.3, min_kept=1) == pytest.approx(
        float(hard.mean())
    )
    top = each.topk(60).values.mean()
    assert losses.ohem_cross_entropy(LOGITS, LABELS, thresh=1e-6, min_kept=60) == pytest.approx(float(top))


def test_focal_loss_without_focus_is_cross_entropy():
    assert losses.focal_loss(LOGITS, HOLED, gamma=0.0) == pytest.approx(
        float(losses.cross_entropy(LOGITS, HOLED))
    )


def test_class_weights_give_the_weighted_mean():
    weights = [0.5, 1.0, 3.0]
    expected = F.cross_entropy(LOGITS, HOLED, torch.tensor(weights), ignore_index=255)
    assert losses.cross_entropy(LOGITS, HOLED, weight=weights) == pytest.approx(float(expected), rel=1e-5)


def test_binary_cross_entropy_judges_each_class_against_the_rest():
    kept = HOLED != 255
    each = [
        F.binary_cross_entropy_with_logits(LOGITS[:, c][kept], (HOLED[kept] == c).float()) for c in range(3)
    ]
    assert losses.binary_cross_entropy(LOGITS, HOLED) == pytest.approx(float(sum(each)) / 3, rel=1e-5)


def test_a_single_channel_is_judged_against_labels_0_and_1():
    logits, labels = LOGITS[:, :1], (LABELS == 2).long()
    expected = F.binary_cross_entropy_with_logits(logits[:, 0], labels.float())
    assert losses.binary_cross_entropy(logits, labels) == pytest.approx(float(expected), rel=1e-5)


def test_dynamic_weights_make_rare_positives_count_as_much_as_the_rest():
    labels = torch.zeros(1, 10, 10, dtype=torch.long)
    labels[0, 0, :5] = 1
    labels[0, 9] = 255
    logits = torch.zeros(1, 1, 10, 10)  # every pixel loses log 2
    share = 5 / 90
    both = losses.binary_cross_entropy(logits, labels, weight="dynamic")
    assert both == pytest.approx(4 * share * (1 - share) * np.log(2), rel=1e-5)
    positives = losses.binary_cross_entropy(logits, labels, pos_weight="dynamic")
    assert positives == pytest.approx((2 * (1 - share) * share + 1 - share) * np.log(2), rel=1e-5)


def test_dice_and_lovasz_are_zero_for_a_perfect_prediction_and_positive_otherwise():
    perfect = F.one_hot(LABELS, 3).permute(0, 3, 1, 2) * 60.0
    for loss in (losses.dice_loss, losses.lovasz_softmax):
        assert float(loss(perfect, LABELS)) == pytest.approx(0, abs=1e-4)
        assert float(loss(LOGITS, LABELS)) > 0.2


def test_lovasz_of_hard_predictions_is_the_jaccard_loss():
    guess = LABELS.clone()
    guess[:, :, :3] = 0
    hard = F.one_hot(guess, 3).permute(0, 3, 1, 2) * 200.0
    iou = []
    for c in range(3):
        a, b = guess == c, c == LABELS
        iou.append(float((a & b).sum() / (a | b).sum()))
    assert losses.lovasz_softmax(hard, LABELS) == pytest.approx(1 - np.mean(iou), abs=1e-4)


@pytest.mark.parametrize("name", ["cross_entropy", "ohem_cross_entropy", "bootstrapped_cross_entropy",
                                  "dice_loss", "focal_loss", "lovasz_softmax",
                                  "binary_cross_entropy"])  # fmt: skip
def test_every_loss_has_a_finite_gradient(name):
    logits = LOGITS.clone().requires_grad_(True)
    getattr(losses, name)(logits, HOLED).backward()
    assert torch.isfinite(logits.grad).all()
    assert logits.grad.abs().sum() > 0


def test_heads_are_weighted_and_a_wrong_number_of_them_is_told():
    total = losses.Weighted([losses.cross_entropy], [1.0, 0.5])
    one = float(losses.cross_entropy(LOGITS, LABELS))
    assert float(total([LOGITS, LOGITS], LABELS)) == pytest.approx(1.5 * one)
    with pytest.raises(ConfigError, match="the model has 1 outputs"):
        total([LOGITS], LABELS)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 5))
def test_segmentation_metrics_equal_the_definition(seed, classes):
    generator = np.random.default_rng(seed)
    truth, guess = generator.integers(0, classes, (2, 200))
    truth[:20] = 255
    matrix = ConfusionMatrix(classes)
    matrix.add(guess[:90], truth[:90])
    matrix.add(guess[90:], truth[90:])
    metrics = matrix.metrics()
    truth, guess = truth[20:], guess[20:]
    for c in range(classes):
        union = ((truth == c) | (guess == c)).sum()
        assert metrics["class_iou"][c] == pytest.approx(((truth == c) & (guess == c)).sum() / max(union, 1))
    assert metrics["accuracy"] == pytest.approx((truth == guess).mean())
    chance = sum((truth == c).mean() * (guess == c).mean() for c in range(classes))
    assert metrics["kappa"] == pytest.approx(((truth == guess).mean() - chance) / (1 - chance))


def test_a_class_that_never_occurs_counts_as_zero_or_not_at_all():
    matrix = ConfusionMatrix(3)
    matrix.add(np.array([0, 1]), np.array([0, 1]))
    assert matrix.metrics()["mIoU"] == pytest.approx(2 / 3)
    assert matrix.metrics()["mIoU_present"] == 1


def test_topk_weighs_samples_not_batches():
    counter = TopK(ks=(1, 2))
    counter.add(np.array([[0.1, 0.9, 0.0]] * 3), np.array([1, 1, 0]))
    counter.add(np.array([[0.1, 0.9, 0.0]]), np.array([2]))
    assert counter.metrics() == {"top1": 0.5, "top2": 0.75}
