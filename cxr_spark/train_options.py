"""The options of a training run, from which command line, card and runs row are derived."""

import math
from argparse import ArgumentParser, BooleanOptionalAction, Namespace
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, Self

from cxr_spark.backbones import BACKBONES
from cxr_spark.imbalance import IMBALANCE

DEFAULT_EPOCHS = 12
PRECISIONS = ("auto", "fp32", "bf16")


class TrainInputError(ValueError):
    """Options or images that no model can be trained with; nothing has been written."""


class Bounds(NamedTuple):
    """`least <= value`, and below `limit`."""

    least: float
    limit: float = math.inf


def _option(default: Any, words: str, **more: Any) -> Any:
    return field(default=default, metadata={"help": words, "type": type(default), **more})


def _switch(default: bool, words: str) -> Any:
    switch = {"help": words, "action": BooleanOptionalAction}
    return field(default=default, metadata=switch)


@dataclass(frozen=True)
class TrainOptions:
    """Options of a training run; each field is an option of the command line of the same name."""

    arch: str = _option("resnet18", "torchvision backbone", choices=list(BACKBONES))
    epochs: int | None = _option(
        None,
        f"passes over the train split (default {DEFAULT_EPOCHS}; with --max-runtime, as many as "
        "fit)",
        type=int,
    )
    workers: int = _option(2, "ranks, each a process; in local mode they share the cores")
    batch_size: int = _option(32, "images of a step, over all workers together")
    accumulate: int = _option(1, "parts that a step's images go through in, to save memory")
    images_version: int | None = _option(
        None, "version of images to train on (default: the published one)", type=int
    )
    train_share: float = _option(
        1.0, "share of the train split to learn from, to see what more data would give"
    )
    seed: int = _option(0, "of weights, order and augmentation")
    weights: str | None = _option(
        None,
        "weights to begin with: .safetensors, or .pt/.pth of torch; torchvision's names",
        type=str,
        metavar="FILE",
    )
    freeze_backbone: bool = _switch(False, "train the classifier alone, on --weights")
    learning_rate: float = _option(2e-3, "the highest of the schedule: warm-up, then a cosine")
    warm_up: float = _option(0.08, "share of the schedule in which the learning rate rises")
    weight_decay: float = _option(0.05, "AdamW's; not on norms and biases")
    clip: float = _option(2.0, "the largest norm of the gradient")
    label_smoothing: float = _option(0.05, "share of each label that is spread over all classes")
    ema: float = _option(0.0, "decay a step of an average of weights that is kept instead; 0: none")
    augment: bool = _switch(True, "turn, scale, shift, brighten and stretch the images a little")
    flip: bool = _switch(False, "also mirror half of the images, left to right")
    imbalance: str = _option(
        "none",
        "train as if the classes were equally frequent; probabilities stay those of train's shares",
        choices=list(IMBALANCE),
    )
    patience: int = _option(0, "epochs without a lower val CCE that end the training; 0: none do")
    precision: str = _option(
        "auto", "of the network's arithmetic; auto: bf16 where it is fast", choices=list(PRECISIONS)
    )
    compile: bool = _switch(False, "compile the network with torch.compile")
    checkpoint_every: int = _option(500, "steps between checkpoints; there is one after each epoch")

    def __post_init__(self) -> None:
        for name, bounds in self._bounds().items():
            value = getattr(self, name)
            if value is not None and not bounds.least <= value < bounds.limit:
                below = f" and below {bounds.limit:g}" if bounds.limit < math.inf else ""
                why = ", one image a worker and part" if name == "batch_size" else ""
                raise TrainInputError(
                    f"{name} is {value}, it must be at least {bounds.least:g}{below}{why}"
                )
        if not 0 < self.learning_rate < 1:
            raise TrainInputError(
                f"learning_rate is {self.learning_rate}, it must be within 0 to 1"
            )
        if not 0 < self.train_share <= 1:
            raise TrainInputError(
                f"train_share is {self.train_share}, it must be above 0 and at most 1"
            )
        if self.flip and not self.augment:
            raise TrainInputError("flip is a part of augment: it can't be without it")
        if self.freeze_backbone and self.weights is None:
            raise TrainInputError("freeze_backbone needs weights: a random backbone sees nothing")

    def _bounds(self) -> dict[str, Bounds]:
        whole = {"epochs": 1, "workers": 1, "accumulate": 1, "checkpoint_every": 1}
        whole |= {"batch_size": self.workers * self.accumulate, "seed": 0, "patience": 0}
        shares = dict.fromkeys(("warm_up", "weight_decay", "label_smoothing", "ema"), Bounds(0, 1))
        return (
            {name: Bounds(least) for name, least in whole.items()} | shares | {"clip": Bounds(1e-6)}
        )

    @staticmethod
    def add_to(parser: ArgumentParser) -> None:
        """Add an option for every field to a command line."""
        for option in fields(TrainOptions):
            known = dict(option.metadata)
            told = option.default is None or isinstance(option.default, bool)
            default = "" if told else f" (default {option.default})"
            parser.add_argument(
                f"--{option.name.replace('_', '-')}",
                default=option.default,
                **known | {"help": known["help"] + default},
            )

    @classmethod
    def of(cls, arguments: Namespace) -> Self:
        """The options of a parsed command line.

        Raises:
            TrainInputError: a value that cannot be.
        """
        return cls(**{option.name: getattr(arguments, option.name) for option in fields(cls)})
