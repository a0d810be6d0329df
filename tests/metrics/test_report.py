import json

import numpy as np
import pytest
from helpers.optimized import optimized
from helpers.shapes import CLASSES, fitted, shapes

from jaxdiff.data import load_arrays, open_dataset, to_float
from jaxdiff.media.classifier import fit_classifier
from jaxdiff.metrics import evaluate, format_report, kernel_distance

TRAIN, TEST = shapes(600, 0), shapes(300, 1)


@pytest.fixture(scope="module")
def classify():
    return fitted()


def judge(x, label, classify, train=TRAIN, test=TEST):
    return evaluate(x, label, *test, train_x=train[0], train_label=train[1], classify=classify)


def one_picture_a_class(x, label, classify, count):
    """The best recognized picture of each class, over and over."""
    logits, _ = classify(x)
    labels = np.arange(count, dtype=np.int32) % logits.shape[1]
    best = [np.flatnonzero(label == c)[logits[label == c, c].argmax()] for c in range(logits.shape[1])]
    return x[best][labels], labels


@pytest.mark.slow
def test_real_images_as_samples_are_as_good_as_real_ones(classify):
    report = judge(*shapes(300, 2), classify)
    fake, real = report["samples"], report["real"]
    assert fake["accuracy"] > 0.95 and real["accuracy"] > 0.95
    for part in (fake, real):
        assert abs(part["kernel_distance"]) < 5 * part["kernel_distance_error"]
        assert part["precision"] > 0.8 and part["recall"] > 0.8


def assert_collapse_shows(report):
    fake, real = report["samples"], report["real"]
    assert fake["accuracy"] > 0.95  # all that a classifier can see
    assert fake["kernel_distance"] > 8 * (abs(real["kernel_distance"]) + real["kernel_distance_error"])
    assert fake["kernel_distance"] > 5 * fake["kernel_distance_error"]
    assert fake["recall"] < 0.05 < 0.75 < real["recall"]


@pytest.mark.slow
def test_one_picture_a_class_shows_in_distance_and_recall_but_not_in_accuracy(classify):
    assert_collapse_shows(judge(*one_picture_a_class(*TRAIN, classify, 300), classify))


@pytest.mark.slow
def test_real_clothes_are_recognized_and_one_piece_a_class_shows_too():
    splits = (load_arrays(open_dataset("fashion_mnist", split)) for split in ("train", "test"))
    train, test = ((to_float(split["x"]), split["label"]) for split in splits)
    with optimized():
        classify = fit_classifier(*train, num_classes=10, steps=300)
    report = judge(*one_picture_a_class(*(a[:10_000] for a in train), classify, 1000), classify, train, test)
    assert report["real"]["accuracy"] > 0.84
    assert_collapse_shows(report)


@pytest.mark.slow
def test_wrong_classes_show(classify):
    x, label = shapes(300, 2)
    report = judge(x, (label + 1) % CLASSES, classify)
    fake, real = report["samples"], report["real"]
    assert fake["accuracy"] < 0.05 and max(fake["accuracy_by_class"]) < 0.05
    assert fake["kernel_distance"] > 20 * (abs(real["kernel_distance"]) + real["kernel_distance_error"])


@pytest.mark.slow
def test_samples_of_one_class_are_compared_with_that_class(classify):
    x, label = shapes(300, 2)
    only = label == 1
    report = judge(x[only], label[only], classify)
    fake, real = report["samples"], report["real"]
    assert report["count"] == {"samples": 100, "train": 100, "test": 300}
    assert fake["accuracy_by_class"][0] is None and fake["accuracy_by_class"][1] > 0.9
    for part in (fake, real):
        assert abs(part["kernel_distance"]) < 5 * part["kernel_distance_error"]
        assert part["recall"] > 0.8


def test_the_distance_is_the_mean_over_classes():
    def classify(images):
        return np.zeros((len(images), CLASSES)), images.reshape(len(images), -1)

    x, label = shapes(90, 2)
    got = judge(0.5 * x, label, classify, test=TEST)["samples"]
    scale = np.sqrt(np.mean(TEST[0].astype(np.float64) ** 2))
    pairs = [(0.5 * x[label == c] / scale, TEST[0][TEST[1] == c] / scale) for c in range(CLASSES)]
    parts = [kernel_distance(a.reshape(30, -1), b.reshape(100, -1)) for a, b in pairs]
    assert got["kernel_distance"] == pytest.approx(np.mean([part.value for part in parts]), rel=1e-4)
    error = np.sqrt(np.sum([part.standard_error**2 for part in parts])) / 3
    assert got["kernel_distance_error"] == pytest.approx(error, rel=1e-4)


def test_the_distance_does_not_depend_on_the_scale_of_the_features():
    def classify(images, factor=1.0):
        return np.eye(CLASSES)[np.zeros(len(images), int)], factor * images.reshape(len(images), -1)

    x, label = shapes(100, 2)
    a, b = judge(x, label, classify), judge(x, label, lambda images: classify(images, 7.0))
    assert a["samples"]["kernel_distance"] == pytest.approx(b["samples"]["kernel_distance"], rel=1e-6)


@pytest.mark.slow
def test_the_report_is_json_and_a_table(classify):
    x, label = shapes(300, 2)
    report = judge(x[label != 2], label[label != 2], classify)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    table = format_report(report, ["top", "bottom", "upright"])
    lines = {line.split("  ")[0].strip() or line.strip().split()[0]: line for line in table.splitlines()}
    assert "200 samples" in table and "300 test images" in table
    assert lines["recognized"].count("%") == 2
    upright = next(line for line in table.splitlines() if "upright" in line)
    assert upright.split()[1] == "-"
    assert f"{report['samples']['recall']:.3f}" in lines["recall"]
    assert f"{report['real']['kernel_distance']:.3f} +- " in lines["kernel distance"]
    assert "class 2" in format_report(report)
    with pytest.raises(ValueError, match="3 classes, got 2 names"):
        format_report(report, ["a", "b"])


@pytest.mark.slow
def test_wrong_samples_are_refused(classify):
    x, label = shapes(60, 2)
    with pytest.raises(ValueError, match="not finite"):
        judge(np.where(x > 0.5, np.nan, x), label, classify)
    with pytest.raises(ValueError, match="the samples has 3 of class 0"):
        judge(x[:9], label[:9], classify)
    with pytest.raises(ValueError, match="the test set has 0 of class 2"):
        judge(x, label, classify, test=(TEST[0][TEST[1] < 2], TEST[1][TEST[1] < 2]))
    with pytest.raises(ValueError, match="labels"):
        judge(x, label[:-1], classify)
    with pytest.raises(ValueError, match="shape"):
        judge(x[:, :8], label, classify)
