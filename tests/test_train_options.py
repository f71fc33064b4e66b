"""The command line is the dataclass; values that cannot be are refused with what could."""

import argparse
from dataclasses import asdict, fields
from typing import Any

import pytest

from cxr_spark.train_options import TrainInputError, TrainOptions

OTHERS: dict[str, Any] = {
    "arch": "densenet121",
    "epochs": 3,
    "workers": 4,
    "batch_size": 8,
    "accumulate": 2,
    "images_version": 2,
    "train_share": 0.5,
    "seed": 5,
    "weights": "a.pt",
    "freeze_backbone": True,
    "learning_rate": 0.01,
    "warm_up": 0.1,
    "weight_decay": 0.01,
    "clip": 1.0,
    "label_smoothing": 0.1,
    "ema": 0.9,
    "augment": False,
    "flip": False,
    "imbalance": "sampling",
    "patience": 3,
    "precision": "bf16",
    "compile": True,
    "checkpoint_every": 7,
}


def parsed(*words: str) -> TrainOptions:
    parser = argparse.ArgumentParser()
    TrainOptions.add_to(parser)
    return TrainOptions.of(parser.parse_args(words))


def word(name: str, value: Any) -> list[str]:
    option = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [option if value else option.replace("--", "--no-", 1)]
    return [option, str(value)]


def test_the_command_line_has_every_option_with_its_default() -> None:
    assert parsed() == TrainOptions()
    assert OTHERS.keys() == {option.name for option in fields(TrainOptions)}
    words = [part for name, value in OTHERS.items() for part in word(name, value)]
    assert asdict(parsed(*words)) == OTHERS
    assert parsed("--flip").flip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--epochs", "0"], "epochs is 0, it must be at least 1"),
        (["--workers", "0"], "workers is 0"),
        (["--workers", "4", "--batch-size", "3"], "batch_size is 3, it must be at least 4"),
        (["--accumulate", "20", "--batch-size", "32"], "must be at least 40, one image a worker"),
        (["--seed", "-1"], "seed is -1"),
        (["--learning-rate", "0"], "learning_rate is 0.0"),
        (["--learning-rate", "nan"], "learning_rate is nan"),
        (["--ema", "1"], "ema is 1.0, it must be at least 0 and below 1"),
        (["--label-smoothing", "nan"], "label_smoothing is nan"),
        (["--clip", "0"], "clip is 0.0"),
        (["--checkpoint-every", "0"], "checkpoint_every is 0"),
        (["--freeze-backbone"], "freeze_backbone needs weights"),
        (["--flip", "--no-augment"], "flip is a part of augment"),
    ],
)
def test_values_that_cannot_be_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(TrainInputError, match=message):
        parsed(*words)
