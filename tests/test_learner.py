"""One step: what is decayed, averaged, frozen and weighted, and that it goes on where it was."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cxr_spark import imbalance
from cxr_spark.learner import Learner, make_optimizer
from cxr_spark.models import build_model, standardise
from cxr_spark.ranks import Place
from cxr_spark.train_options import TrainOptions
from cxr_spark.validation import Statistics
from tests.toys import toy_images

UNEVEN = Statistics(0.27, 0.17, [60, 20, 10, 2, 2, 2, 2, 2, 0])


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def learner(**options: Any) -> Learner:
    return Learner(TrainOptions(**options), UNEVEN, Place())


@pytest.fixture(scope="module")
def batch() -> tuple[Tensor, Tensor]:
    pixels, labels = toy_images(9, 0)
    return torch.from_numpy(pixels[:, None]), torch.from_numpy(labels)


def frozen(**options: Any) -> Learner:
    """A learner whose head alone trains, so that a batch's parts don't see each other."""
    given = {"weights": "w", "freeze_backbone": True, "augment": False, "precision": "fp32"}
    return learner(**given, **options)


def test_norms_and_biases_are_not_decayed() -> None:
    model = build_model("resnet18")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decay = {
        names[id(parameter)]: group["weight_decay"]
        for group in make_optimizer(model, TrainOptions()).param_groups
        for parameter in group["params"]
    }
    assert decay.keys() == set(names.values())
    assert decay["conv1.weight"] == decay["fc.weight"] == 0.05
    undecayed = {"bn1.weight", "bn1.bias", "fc.bias", "layer1.0.bn1.weight"}
    assert {decay[name] for name in undecayed} == {0.0}


def test_a_step_follows_from_seed_and_number(batch: tuple[Tensor, Tensor]) -> None:
    losses = []
    for number, seed in ((3, 0), (3, 0), (4, 0), (3, 1)):
        some = learner(seed=0)
        some.options = TrainOptions(seed=seed)
        torch.rand(number)  # what was drawn before doesn't count
        losses.append(some.step(*batch, number=number, learning_rate=1e-3)[0].item())
    assert losses[0] == losses[1]
    assert len(set(losses)) == 3


def test_a_restored_learner_takes_the_same_step(batch: tuple[Tensor, Tensor]) -> None:
    first, second = learner(ema=0.9), learner(ema=0.9, seed=8)
    second.options = first.options
    first.step(*batch, number=0, learning_rate=1e-2)
    second.restore({name: tensor.clone() for name, tensor in first.tensors().items()})
    for some in (first, second):
        some.step(*batch, number=1, learning_rate=1e-2)
    ours, theirs = first.tensors(), second.tensors()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_frozen_backbone_stays_bit_for_bit(batch: tuple[Tensor, Tensor]) -> None:
    some = frozen()
    before = {name: value.clone() for name, value in some.model.state_dict().items()}
    some.step(*batch, number=0, learning_rate=1e-2)
    after = some.model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"fc.weight", "fc.bias"}


def test_parts_of_a_batch_give_the_gradient_of_the_whole(batch: tuple[Tensor, Tensor]) -> None:
    gradients = []
    for accumulate in (1, 2, 4):
        some = frozen(accumulate=accumulate)
        total = some.step(*batch, number=0, learning_rate=0.0)
        assert total[1] == 9
        gradients.append(some.model.get_parameter("fc.weight").grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(gradients[0], gradients[2], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [{"label_smoothing": 0.3}, {"imbalance": "logit-adjustment"}, {"imbalance": "weights"}],
)
def test_smoothing_and_what_is_against_imbalance_are_in_the_loss(
    batch: tuple[Tensor, Tensor], options: dict[str, Any]
) -> None:
    some = frozen(**{"label_smoothing": 0.0, "clip": 1e6} | options)
    told = some.step(*batch, number=0, learning_rate=0.0)
    gradient = some.head.weight.grad
    pixels, labels = batch
    logits = some.model(standardise(pixels, UNEVEN.mean, UNEVEN.std))
    if options.get("imbalance") == "logit-adjustment":
        logits = logits + torch.tensor(imbalance.logit_adjustment(UNEVEN.counts)).float()
    # What is told is neither smoothed nor weighted.
    assert told[0] == pytest.approx(F.cross_entropy(logits, labels, reduction="sum").item())
    smoothing = options.get("label_smoothing", 0.0)
    targets = (1 - smoothing) * F.one_hot(labels, 9) + smoothing / 9
    weights = torch.ones(len(labels))
    if options.get("imbalance") == "weights":
        weights = torch.tensor(imbalance.class_weights(UNEVEN.counts)).float()[labels]
    losses = -(targets * logits.log_softmax(dim=1)).sum(dim=1)
    (expected,) = torch.autograd.grad((weights * losses).mean(), some.head.weight)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


def test_the_learning_rate_of_a_step_is_its_length(batch: tuple[Tensor, Tensor]) -> None:
    lengths = []
    for learning_rate in (0.0, 1e-3, 1e-2):
        some = frozen()
        before = some.head.bias.detach().clone()
        some.step(*batch, number=0, learning_rate=learning_rate)
        lengths.append((some.head.bias - before).norm().item())
    assert lengths[0] == 0 < lengths[1]
    assert lengths[2] == pytest.approx(10 * lengths[1], rel=1e-3)


def test_images_go_through_the_network_with_their_channels_last(
    batch: tuple[Tensor, Tensor],
) -> None:
    some, seen = learner(), []
    some.model.layer1.register_forward_hook(lambda *call: seen.append(call[2]))
    some.step(*batch, number=0, learning_rate=1e-3)
    for tensor in (seen[0], some.model.layer1[0].conv1.weight):
        assert tensor.is_contiguous(memory_format=torch.channels_last)
        assert not tensor.is_contiguous()


@pytest.mark.long
def test_a_compiled_learner_takes_the_steps_of_one_that_is_not(
    batch: tuple[Tensor, Tensor],
) -> None:
    plain, compiled = learner(precision="fp32"), learner(precision="fp32", compile=True)
    for some in (plain, compiled):
        some.step(*batch, number=0, learning_rate=1e-3)
    compiled.restore({name: tensor.clone() for name, tensor in plain.tensors().items()})
    for some in (plain, compiled):
        some.step(*batch, number=1, learning_rate=1e-3)
    ours, theirs = plain.tensors(), compiled.tensors()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        if name.startswith("model."):
            torch.testing.assert_close(theirs[name], tensor, rtol=1e-2, atol=1e-3)


def test_the_gradient_is_clipped(batch: tuple[Tensor, Tensor]) -> None:
    some = frozen(clip=1e-3)
    some.step(*batch, number=0, learning_rate=0.0)
    head = [p.grad.norm() for p in some.head.parameters() if p.grad is not None]
    assert torch.stack(head).norm() == pytest.approx(1e-3, rel=1e-3)


def test_the_average_lags_behind_and_is_what_is_judged(batch: tuple[Tensor, Tensor]) -> None:
    some = learner(ema=0.9)
    start = some.model.get_parameter("fc.weight").detach().clone()
    for number in range(3):
        some.step(*batch, number=number, learning_rate=1e-2)
    now = some.model.get_parameter("fc.weight")
    average = some.judged.get_parameter("fc.weight")
    assert 0 < (average - start).norm() < (now - start).norm()
    assert some.judged is not some.model and learner().judged is not None


def test_weights_and_adjustment_are_those_of_the_remedy_chosen() -> None:
    none, weighted, adjusted = (
        learner(imbalance=name) for name in ("none", "weights", "logit-adjustment")
    )
    assert (none.row_weights == 1).all() and (none.adjustment == 0).all()
    assert weighted.row_weights[0] < 1 < weighted.row_weights[7]
    assert adjusted.adjustment[0] == pytest.approx(torch.log(torch.tensor(0.6)).item())


def test_bf16_is_for_the_network_alone(batch: tuple[Tensor, Tensor]) -> None:
    some = learner(precision="bf16")
    some.step(*batch, number=0, learning_rate=1e-3)
    assert {value.dtype for value in some.model.parameters()} == {torch.float32}
    assert some.uses_bf16 and not learner(precision="fp32").uses_bf16
    assert learner().uses_bf16 == ("avx512_bf16" in Path("/proc/cpuinfo").read_text())
