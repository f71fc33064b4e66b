"""What a model version has said already: which files need no scoring, and which contents none."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cxr_spark import delta, tables
from cxr_spark.labels import CLASS_COLUMNS
from cxr_spark.reasons import UNREAD_UNTIL_CHANGED
from cxr_spark.tables import Warehouse

# A file with these is the same as when it was scored.
STATE = ("size_bytes", "modified_at", "image_id")
UIDS = ("sop_instance_uid", "study_instance_uid")
OF_CONTENT = ("content_sha256", "probabilities", *UIDS)
COLUMNS = (*STATE, *OF_CONTENT, "images_version", "error", "scored_at")


class Answer(NamedTuple):
    """What is said of a content: nine probabilities, and what its DICOM tags call it."""

    probabilities: NDArray[np.float64]
    sop_instance_uid: str | None = None
    study_instance_uid: str | None = None


class Scored:
    """The predictions of a model version, those made before and those that a run adds.

    Attributes:
        model_version: whose.
        rows: as the table has them, the newest first.
        newest: the newest row of each image.
    """

    def __init__(self, model_version: str, rows: pa.Table) -> None:
        self.model_version = model_version
        self.rows = rows.sort_by([("scored_at", "descending")])
        self.newest = first_of_each(self.rows, "image_id")
        self._good = self.rows.filter(pc.is_null(self.rows["error"])).select(OF_CONTENT)
        unread = self.newest.filter(pc.is_null(self.newest["content_sha256"])).select(STATE)
        self._unread = {tuple(row.values()) for row in unread.to_pylist()}
        self._digests = _digests(self._good["content_sha256"].unique().to_pylist())
        self._added: dict[str, Answer] = {}

    @classmethod
    def read(cls, warehouse: Warehouse, model_version: str, at: int | None) -> "Scored":
        """The predictions at a version of the table; none at None, where there is no table."""
        schema = tables.arrow_schema("predictions", COLUMNS)
        files = [] if at is None else warehouse.files("predictions", at)
        ours = [file for file in files if file.partition["model_version"] == model_version]
        parts = [delta.read_part(file.path, schema) for file in ours]
        return cls(model_version, pa.concat_tables([schema.empty_table(), *parts]))

    def holds(self, listed: pa.Table) -> pa.Array:
        """Of each listed image whether it needs no scoring.

        A file is known by path, size and time, unless it couldn't be read, which may have passed;
        a curated image by image_id and content. Only the newest row of an image counts, as it does
        for whoever reads predictions: what is as it was before that row gets a new one.
        """
        files = self.newest.filter(pc.is_null(self.newest["images_version"]))
        was_read = pc.is_valid(files["content_sha256"])
        for_good = pc.is_in(files["error"], pa.array(UNREAD_UNTIL_CHANGED))
        is_file = pc.is_null(listed["images_version"])
        return pc.if_else(
            is_file,
            _is_in(states(listed), states(files.filter(pc.or_(was_read, for_good)))),
            _is_in(_contents(listed), _contents(self.newest)),
        )

    def has_unread(self, image: Mapping[str, Any]) -> bool:
        """Whether the newest row of a file says that it couldn't be read in this state."""
        return tuple(image[name] for name in STATE) in self._unread

    def content_of(self, listed: pa.Table) -> pa.ChunkedArray:
        """The content of each listed file, as far as it is known without reading it."""
        place = _places(states(listed), states(self.rows))
        return self.rows["content_sha256"].take(place)

    def last_scored(self, listed: pa.Table) -> pa.ChunkedArray:
        """When each listed image was scored last; null: never."""
        return self.newest["scored_at"].take(_places(listed["image_id"], self.newest["image_id"]))

    def probabilities(self, listed: pa.Table) -> Iterator[list[float] | None]:
        """The newest ones of each listed image in its state; None where there are none."""
        by_state = _places(states(listed), states(self.rows))
        by_content = _places(_contents(listed), _contents(self.rows))
        places = pc.if_else(pc.is_null(listed["images_version"]), by_state, by_content)
        for row in self.rows["probabilities"].take(places):
            said = row.as_py()
            yield None if said is None else [said[name] for name in CLASS_COLUMNS]

    def contents(self) -> NDArray[np.bytes_]:
        """The contents that have probabilities, sorted; 32 bytes each, as workers are sent them."""
        return np.sort(np.concatenate([self._digests, _digests(list(self._added))]))

    def has_answer(self, contents: pa.ChunkedArray) -> pa.ChunkedArray:
        """Of each content whether it has probabilities in the table; false where it's null."""
        return _is_in(contents, self._good["content_sha256"])

    def add(self, content: str, answer: Answer) -> None:
        """Remember what was said of a content; what was said of it first counts."""
        self._added.setdefault(content, answer)

    def answers(self, contents: Iterable[str]) -> dict[str, Answer]:
        """What is known of some contents; their UIDs where any row has them."""
        wanted = pa.array(sorted(set(contents)), pa.string())
        known = {row["content_sha256"]: _answer(row) for row in _first(self._good, wanted)}
        named = self._good.filter(pc.is_valid(self._good["sop_instance_uid"]))
        for row in _first(named, wanted):
            content = row["content_sha256"]
            known[content] = known[content]._replace(**{name: row[name] for name in UIDS})
        return known | {
            name: self._added[name] for name in wanted.to_pylist() if name in self._added
        }


def first_of_each(rows: pa.Table, column: str) -> pa.Table:
    """The first row of each value of a column, in their order."""
    is_first = pc.equal(_places(rows[column], rows[column]), pa.array(np.arange(len(rows))))
    return rows.filter(is_first)


def _first(rows: pa.Table, contents: pa.Array) -> list[dict[str, Any]]:
    """The first row of each of the contents that are among the rows."""
    return rows.take(_places(contents, rows["content_sha256"]).drop_null()).to_pylist()


def _digests(contents: Sequence[str]) -> NDArray[np.bytes_]:
    return np.frombuffer(bytes.fromhex("".join(contents)), "S32")


def _answer(row: Mapping[str, Any]) -> Answer:
    probabilities = np.array([row["probabilities"][name] for name in CLASS_COLUMNS])
    return Answer(probabilities, *(row[name] for name in UIDS))


def states(rows: pa.Table) -> pa.ChunkedArray:
    """One string a file that says which it is, in which state; null where that isn't known."""
    return _joined(rows, STATE)


def _contents(rows: pa.Table) -> pa.ChunkedArray:
    return _joined(rows, ("content_sha256", "image_id"))


def _joined(rows: pa.Table, names: Sequence[str]) -> pa.ChunkedArray:
    columns = (rows[name] for name in names)
    numbers = (c.cast(pa.int64()) if pa.types.is_timestamp(c.type) else c for c in columns)
    return pc.binary_join_element_wise(*(column.cast(pa.string()) for column in numbers), " ")


def _is_in(keys: pa.ChunkedArray, among: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.is_in(keys, among.combine_chunks(), skip_nulls=True)


def _places(keys: pa.Array | pa.ChunkedArray, among: pa.ChunkedArray) -> pa.Array:
    """Where each key stands first; null where it doesn't, or isn't known."""
    return pc.index_in(keys, among.combine_chunks(), skip_nulls=True)
