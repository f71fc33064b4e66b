"""An evaluation in words, for a person at a terminal: the headline, and a table behind it."""

import numpy as np

from cxr_spark.figures import HEADLINE, Evaluation
from cxr_spark.slice_figures import SHARE_OF_GAIN, Figure

TABLE = {
    "CCE": "cce",
    "  border only": "cce_border_only",
    "  source only": "cce_source_only",
    "  class prior": "cce_prior",
    "accuracy": "accuracy",
    "balanced accuracy": "balanced_accuracy",
    "mean AUROC": "auroc",
    "mean average precision": "average_precision",
    "macro F1": "f1",
    "Brier score": "brier",
    "calibration error": "ece",
    "pointing game": "pointing_game",
    "  by chance": "pointing_game_by_chance",
}
OF_A_SLICE = {"CCE": "cce", "  its class shares": "cce_source_only", "mean AUROC": "auroc"}
OF_A_COMPARISON = {
    "CCE, this less the other": "cce_difference",
    "accuracy, likewise": "accuracy_difference",
    "images gained": "gained",
    "images lost": "lost",
    "McNemar's p": "mcnemar_p",
}
WIDTH = 28


def headline(evaluation: Evaluation) -> str:
    """The CCE beside its baselines, in one line."""
    cce, prior, source_only, border_only, accuracy = map(evaluation.value, HEADLINE)
    found = evaluation.figure("cce")
    interval = "" if found.ci_low is None else f" [{found.ci_low:.3f}, {found.ci_high:.3f}]"
    source = _share_of_gain(evaluation.figure(SHARE_OF_GAIN))
    border = "" if np.isnan(border_only) else f", border only {border_only:.3f}"
    return (
        f"{evaluation.model['model_version']} on {evaluation.split}: CCE {cce:.3f}{interval} on "
        f"{found.n:,} images, class prior {prior:.3f}, source only {source_only:.3f}{border}: "
        f"{source}; accuracy {accuracy:.1%}"
    )


def table(evaluation: Evaluation) -> list[str]:
    """Lines of figures with their intervals; what wasn't asked for or found has none."""
    lines = [f"{'':{WIDTH}}{'value':>8}  {'95 % interval':>16}  {'n':>7}"]
    lines += _lines(evaluation, TABLE, "all")
    for name in evaluation.slice_names("within="):
        lines += [f"within {name.partition('=')[2]} alone", *_lines(evaluation, OF_A_SLICE, name)]
    for split, figures in evaluation.other_splits.items():
        (cce,) = (f for f in figures if (f.class_name, f.metric) == ("all", "cce"))
        lines.append(_line(f"CCE on {split}", cce))
    if evaluation.learning_curve:
        lines.append("learned from a share of train")
    for point in evaluation.learning_curve:
        words = f"  {point.share:.4g}: {point.train_images:,} images"
        lines.append(_line(words, evaluation.figure("cce", slice_name=point.slice_name)))
    if evaluation.comparison:
        name = evaluation.comparison.slice_name
        other = evaluation.comparison.other["model_version"]
        lines += [f"against {other}", *_lines(evaluation, OF_A_COMPARISON, name)]
    return lines


def _lines(evaluation: Evaluation, names: dict[str, str], slice_name: str) -> list[str]:
    figures = {
        words: evaluation.figure(metric, slice_name=slice_name) for words, metric in names.items()
    }
    indent = "" if slice_name == "all" else "  "
    return [_line(indent + words, figure) for words, figure in figures.items() if figure.n]


def _share_of_gain(share: Figure) -> str:
    if share.value is None:
        return "the model gains nothing over the prior"
    has_ends = share.ci_low is not None and share.ci_high is not None
    ends = f" [{share.ci_low:.0%}, {share.ci_high:.0%}]" if has_ends else ""
    return f"the source alone gives {share.value:.0%}{ends} of the model's gain over the prior"


def _line(words: str, figure: Figure) -> str:
    if figure.value is None:
        return f"{words:{WIDTH - 1}}{figure.lack:>9}  {'':>16}  {figure.n:>7,}"
    value = f"{figure.value:.0f}" if figure.metric in ("gained", "lost") else f"{figure.value:.3f}"
    ends = "" if figure.ci_low is None else f"{figure.ci_low:.3f} to {figure.ci_high:.3f}"
    return f"{words:{WIDTH}}{value:>8}  {ends:>16}  {figure.n:>7,}"
