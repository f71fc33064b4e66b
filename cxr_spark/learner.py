"""The network in training on one rank: one optimiser step, and all that must outlive a kill."""

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW
from torch.optim.swa_utils import AveragedModel

from cxr_spark import imbalance
from cxr_spark.augment import augment
from cxr_spark.backbones import BACKBONES
from cxr_spark.models import build_model, standardise
from cxr_spark.ranks import Place, average_buffers, replica
from cxr_spark.train_options import TrainOptions
from cxr_spark.validation import Statistics

Tensors = list[Tensor] | tuple[Tensor, ...]
STATE_OF_OPTIMIZER = ("step", "exp_avg", "exp_avg_sq")


class Learner:
    """A network, its replica over the ranks, its optimiser and its average.

    Args:
        options: of the run.
        statistics: of the train split.
        place: this rank.
        initial: weights to begin with, as models.pretrained_weights gives them.
    """

    def __init__(
        self,
        options: TrainOptions,
        statistics: Statistics,
        place: Place,
        initial: dict[str, Tensor] | None = None,
    ) -> None:
        self.options, self.statistics, self.place = options, statistics, place
        # Of the network's arithmetic; weights and losses stay fp32.
        self.uses_bf16 = options.precision == "bf16" or (
            options.precision == "auto" and has_bf16(place.device)
        )
        torch.manual_seed(options.seed)
        model = build_model(options.arch)
        if initial is not None:
            model.load_state_dict(initial, strict=False)
        self.model = model.to(memory_format=torch.channels_last).to(place.device)
        self.head = self.model.get_submodule(BACKBONES[options.arch].head)
        if options.freeze_backbone:
            self.model.requires_grad_(False)
            self.head.requires_grad_(True)
        self.optimizer = make_optimizer(self.model, options)
        self.average = _average(self.model, options.ema) if options.ema else None
        if options.compile:
            self.model.compile()
        self.parallel = replica(self.model, place)
        self.row_weights, self.adjustment = _against_imbalance(options, statistics, place)

    @property
    def judged(self) -> nn.Module:
        """The network that is validated and kept: the average, where there is one."""
        return self.average.module if self.average is not None else self.model

    def step(self, pixels: Tensor, labels: Tensor, *, number: int, learning_rate: float) -> Tensor:
        """One optimiser step; all that is random in it follows from seed, number and rank.

        Args:
            pixels: (B, 1, S, S) uint8, this rank's images.
            labels: (B,) int64.
            number: of the step, counted from 0.
            learning_rate: of the step.

        Returns:
            (2,) float64: cross-entropy summed over the rows, without label smoothing, and their
            number.
        """
        self._train_mode()
        seed = np.random.SeedSequence((self.options.seed, number, self.place.rank))
        generator = torch.manual_seed(int(seed.generate_state(1, np.uint64)[0]))
        images = standardise(pixels, self.statistics.mean, self.statistics.std)
        if self.options.augment:
            images = augment(images, generator, flip=self.options.flip)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.zero_grad(set_to_none=True)
        total = self._gradients(images.contiguous(memory_format=torch.channels_last), labels)
        nn.utils.clip_grad_norm_(self.model.parameters(), self.options.clip)
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        return total

    def _train_mode(self) -> None:
        self.parallel.train()
        if self.options.freeze_backbone:  # its running means and variances stay, too
            self.model.eval()
            self.head.train()

    def _gradients(self, images: Tensor, labels: Tensor) -> Tensor:
        """Gradients of the mean loss of a batch, which goes through in parts."""
        total = torch.zeros(2, dtype=torch.float64, device=images.device)
        parts = list(zip(self._parts(images), self._parts(labels), strict=True))
        for place, (some_images, some_labels) in enumerate(parts):
            with self._in_sync(place == len(parts) - 1):
                with torch.autocast(images.device.type, torch.bfloat16, enabled=self.uses_bf16):
                    logits = self.parallel(some_images)
                logits = logits.float() + self.adjustment
                smoothing = self.options.label_smoothing
                losses = F.cross_entropy(
                    logits, some_labels, label_smoothing=smoothing, reduction="none"
                )
                ((losses * self.row_weights[some_labels]).sum() / len(labels)).backward()
            total[0] += F.cross_entropy(logits.detach(), some_labels, reduction="sum")
            total[1] += len(some_labels)
        return total

    def _parts(self, rows: Tensor) -> tuple[Tensor, ...]:
        return rows.tensor_split(min(self.options.accumulate, len(rows)))

    @contextlib.contextmanager
    def _in_sync(self, is_last: bool) -> Iterator[None]:
        """Gradients are exchanged with the last part of a step alone."""
        parallel = self.parallel
        if isinstance(parallel, nn.parallel.DistributedDataParallel) and not is_last:
            with parallel.no_sync():
                yield
        else:
            yield

    def settle(self) -> None:
        """Make running means and variances those of all ranks; all ranks call it."""
        average_buffers(self.model, self.place)
        if self.average is not None:
            average_buffers(self.average.module, self.place)

    def tensors(self) -> dict[str, Tensor]:
        """Network, average and optimiser, as `restore` takes them."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        if self.average is not None:
            average = self.average.state_dict().items()
            tensors |= {f"average.{name}": value for name, value in average}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{key}.{name}"] = value
        return tensors

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go on from where `tensors` was called."""
        self.model.load_state_dict(_below("model.", tensors))
        if self.average is not None:
            self.average.load_state_dict(_below("average.", tensors))
        for name, parameter in self.model.named_parameters():
            known = {key: tensors.get(f"optimizer.{key}.{name}") for key in STATE_OF_OPTIMIZER}
            # In the parameter's memory format, which the fused step takes for granted.
            self.optimizer.state[parameter] = {
                key: value.to(parameter.device)
                if key == "step"
                else torch.empty_like(parameter, requires_grad=False).copy_(value)
                for key, value in known.items()
                if value is not None
            }


def has_bf16(device: torch.device) -> bool:
    """Whether a device multiplies in bf16 by instructions of its own, which takes half the time."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def make_optimizer(model: nn.Module, options: TrainOptions) -> AdamW:
    """AdamW that leaves norms and biases, which have one dimension, undecayed."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=options.learning_rate, fused=True)


def _average(model: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average that is short at first, when weights change fast."""

    @torch.no_grad()
    def update(averages: Tensors, currents: Tensors, updates: Tensor | int) -> None:
        now = min(decay, (1 + int(updates)) / (10 + int(updates)))
        for average, current in zip(averages, currents, strict=True):
            if average.is_floating_point():
                average.lerp_(current, 1 - now)
            else:  # the number of batches that a norm has seen
                average.copy_(current)

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)


def _against_imbalance(
    options: TrainOptions, statistics: Statistics, place: Place
) -> tuple[Tensor, Tensor]:
    """(9,) weights of rows by class in the loss, and (9,) what is added to the logits there."""
    weights, adjustment = np.ones(len(statistics.counts)), np.zeros(len(statistics.counts))
    if options.imbalance == "weights":
        weights = imbalance.class_weights(statistics.counts)
    if options.imbalance == "logit-adjustment":
        adjustment = imbalance.logit_adjustment(statistics.counts)
    both = (torch.from_numpy(values).float().to(place.device) for values in (weights, adjustment))
    row_weights, logit_adjustment = both
    return row_weights, logit_adjustment


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
