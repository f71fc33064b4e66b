"""What an evaluation reads: images and predictions, at the versions of its model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from cxr_spark.judged_images import Judged, judged, read_images, seen_before
from cxr_spark.read_plans import RowFile, first_rows
from cxr_spark.refusals import NothingToEvaluate, score_command
from cxr_spark.tables import Warehouse


@dataclass(frozen=True)
class Material:
    """What an evaluation reads, at the versions of its model.

    Attributes:
        images: narrow, see read_images.
        pictures: the same with pixels, as the table has them.
        predictions: of all models.
        preprocessing: of the images.
    """

    spark: SparkSession
    warehouse: Warehouse
    split: str
    images_version: int
    predictions_version: int
    images: DataFrame
    pictures: DataFrame
    predictions: DataFrame
    preprocessing: str

    def train_images(self, share: float = 1) -> int:
        """Images of a share of the train split."""
        files = self.warehouse.files("images", self.images_version)
        of_train = [RowFile(f.path, f.num_rows) for f in files if f.partition["split"] == "train"]
        return sum(file.num_rows for file in first_rows(of_train, share))

    def judged(self, split: str, model: Mapping[str, Any]) -> Judged:
        """The rows of a split that this evaluation's model can't have seen."""
        rows = self.images.where(F.col("split") == split)
        return judged(rows, seen_before(self.images, split), self.predictions, model)

    def score_command(self, model: Mapping[str, Any], split: str | None = None) -> str:
        """What makes the predictions that are lacking.

        A model of another preprocessing scores the images of its own version alone, in whichever
        split they are there.
        """
        if model["preprocessing"] != self.preprocessing:
            return score_command(self.warehouse, model, "all", int(model["images_version"]))
        return score_command(self.warehouse, model, split or self.split, self.images_version)


def read_material(
    spark: SparkSession, warehouse: Warehouse, model: Mapping[str, Any], split: str
) -> Material:
    """What an evaluation of a model on a split reads.

    Raises:
        NothingToEvaluate: nothing has been scored.
    """
    version = int(model["images_version"])
    predictions_version = warehouse.version("predictions")
    if predictions_version is None:
        command = score_command(warehouse, model, split, version)
        raise NothingToEvaluate(f"{warehouse.root} has no predictions yet. Score first: {command}")
    return Material(
        spark,
        warehouse,
        split,
        version,
        predictions_version,
        read_images(spark, warehouse, version),
        warehouse.read(spark, "images", version),
        warehouse.read(spark, "predictions", predictions_version),
        model["preprocessing"],
    )
