"""Image sets of tensorflow-datasets, read at random and without TensorFlow."""

import difflib
import functools
from typing import Any

import numpy as np

from jaxdiff.data.captions import check_captions
from jaxdiff.data.transforms import fit_array


class TfdsSource:
    """One split of a set: "x" is its image feature, and "label" its class label, if there is one.

    The shape and the classes of a registered set need no files; its length and its images do.
    """

    def __init__(
        self,
        name: str,
        split: str,
        *,
        data_dir: str | None = None,
        size: int | None = None,
        channels: int | None = None,
        captions: bool | str = False,
    ):
        """Describe a set, and open its files if it is prepared.

        Args:
            name: as in `tfds.builder`: NAME, NAME/CONFIG, NAME:VERSION.
            split: a split or a slice of one, e.g. "train[:90%]".
            data_dir: folder of the sets; None: tensorflow-datasets' default.
            size: side of the square images; None: the size of the set, which must then be fixed.
            channels: 1, 3; None: those of the set.
            captions: whether examples have captions: a feature of texts, or of a sequence of them; a string is its
                name, "outer/inner" for a feature in another.

        Raises:
            ValueError: the set is unknown, has no such split, no images of known shape, or no captions. If the set is
                not prepared, the length and the images raise it.
        """
        self._name = f"{name}, split {split}"
        builder = _find_builder(name, data_dir)
        features = builder.info.features
        self._image = _find(features, "image", _is_image)
        if self._image is None:
            raise ValueError(f"{name} has no single image feature; its features are {', '.join(features)}")
        self._label = _find(features, "label", _is_label)
        self.class_names = tuple(features[self._label].names) if self._label else ()
        self.num_classes = len(self.class_names)
        self._text = _find_text(features, name, captions) if captions else None
        self.reads_captions = self._text is not None

        height, width, depth = features[self._image].shape
        if size is None and None in (height, width):
            raise ValueError(f"the images of {name} differ in size: pass size=")
        if channels is None and depth not in (1, 3):
            raise ValueError(f"the images of {name} have {depth} channels: pass channels=1 or 3")
        self.shape = (size or height, size or width, channels or depth)
        self._size, self._channels = size, channels
        self._open = functools.partial(_open_records, builder, name, split, data_dir)
        if builder.is_prepared():
            len(self)  # raises now if the split does not exist

    @functools.cached_property
    def _records(self):
        return self._open()

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        records = self._records
        # Decoders and file formats raise many types for damaged records.
        try:
            record = records[index]
            x = fit_array(np.asarray(record[self._image]), self._size, self._channels)
        except Exception as error:
            raise ValueError(f"cannot read example {index} of {self._name}: {error!s:.500}") from error
        example: dict[str, Any] = {"x": x}
        if self._label:
            example["label"] = int(record[self._label])
        if self._text:
            for part in self._text.split("/"):
                record = record[part]
            texts = [text.decode() if isinstance(text, bytes) else str(text) for text in np.ravel(record)]
            (example["captions"],) = check_captions([texts], [f"example {index} of {self._name}"])
        return example


def has_captions(name: str, data_dir: str | None = None) -> bool:
    """Whether a set has a feature of texts with one of the usual names of captions; others may be names of files.

    Raises:
        ValueError: the set is unknown.
    """
    return bool(_usual_texts(_find_builder(name, data_dir).info.features))


def _find_builder(name: str, data_dir: str | None):
    import tensorflow_datasets as tfds

    try:
        return tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        known = tfds.list_builders(with_community_datasets=False)
        near = difflib.get_close_matches(name.split("/")[0].split(":")[0], known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"tensorflow-datasets has no set {name!r}, and none is prepared{hint}") from error
    except (AssertionError, TypeError, ValueError) as error:  # a wrong version, option, config or form of the name
        why = " ".join(str(error).split('}": ')[-1].split())
        raise ValueError(f"tensorflow-datasets has no {name!r}: {why:.500}") from error


def _open_records(builder, name: str, split: str, data_dir: str | None):
    if not builder.is_prepared():
        where = "" if data_dir is None else f", data_dir={data_dir!r}"
        raise ValueError(
            f"{name} is not prepared in {builder.data_dir}. Prepare it once, on any machine (most sets need "
            "`pip install tensorflow` for this; reading them does not):\n"
            f"  import tensorflow_datasets as tfds\n"
            f"  tfds.builder({name!r}, file_format='array_record'{where}).download_and_prepare()"
        )
    formats = {f.value for f in builder.info.available_file_formats()}
    if not formats & {"array_record", "parquet"}:
        raise ValueError(
            f"{name} is prepared as {', '.join(sorted(formats))}, without random access. Convert it once:\n"
            f"  tfds convert_format --dataset_dir={builder.data_dir} --out_file_format=array_record"
        )
    return builder.as_data_source(split=split)


def _find(features, usual: str, accepts) -> str | None:
    """Name of the feature with the usual name, otherwise of the only accepted one."""
    names = [name for name, feature in features.items() if accepts(feature)]
    return usual if usual in names else names[0] if len(names) == 1 else None


def _find_text(features, name: str, captions: bool | str) -> str:
    """Name of the feature of captions: `captions`, otherwise one of the usual names, otherwise the only one."""
    found = list(dict(_texts(features)))
    if isinstance(captions, str):
        chosen = [captions] if captions in found else []
    else:
        chosen = _usual_texts(features) or (found if len(found) == 1 else [])
    if not chosen:
        asked = f" {captions!r}" if isinstance(captions, str) else ""
        raise ValueError(f"{name} has no feature{asked} of captions; its features of texts are: {', '.join(found)}")
    return chosen[0]


def _usual_texts(features) -> list[str]:
    """Names of features of texts that captions usually have."""
    found = dict(_texts(features))
    return [name for name in ("captions", "caption", "text", "captions/text") if name in found]


def _texts(features, above: str = ""):
    """Yield the names of features of texts, of sequences of texts, and of those one level below."""
    for key, feature in features.items():
        inner = getattr(feature, "feature", feature)  # of a sequence
        if hasattr(inner, "items") and not above:
            yield from _texts(inner, f"{key}/")
        elif not hasattr(inner, "items") and inner.shape in ((), (None,)) and inner.np_dtype in (object, np.bytes_):
            yield above + key, feature


def _is_image(feature) -> bool:
    # A nested feature's shape is a dict.
    return isinstance(feature.shape, tuple) and len(feature.shape) == 3 and feature.np_dtype == np.uint8


def _is_label(feature) -> bool:
    import tensorflow_datasets as tfds

    return isinstance(feature, tfds.features.ClassLabel)
