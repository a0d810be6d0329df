"""`jaxdiff sample DIRECTORY --prompt --control CONTROL PICTURE SCALE`."""

import json
from contextlib import nullcontext

import numpy as np
import pytest
from helpers import tiny_pipeline as tiny
from helpers.devices import one_device
from PIL import Image

from jaxdiff import data
from jaxdiff.cli import main
from jaxdiff.conditions import hints
from jaxdiff.imagine import parse_hint


@pytest.mark.slow
def test_hints_are_files_or_made_of_them(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    file = tmp_path / "a.png"
    Image.fromarray(picture).save(file)
    np.testing.assert_array_equal(parse_hint(str(file)).read((16, 16, 3)), np.float32(picture) / 255)
    np.testing.assert_array_equal(parse_hint(f"edges:{file}").read((16, 16, 3)), data.edges(picture) / np.float32(255))
    want = hints.canny(np.float32(picture)[None] / 127.5 - 1)[0]
    np.testing.assert_allclose(parse_hint(f"canny:{file}").read((16, 16, 3)), want, atol=1e-6)
    distance = np.linspace(1, 3, 256).reshape(16, 16)
    np.savez(tmp_path / "far.npz", depth=distance)
    made = parse_hint(f"depth:{tmp_path / 'far.npz'}").read((16, 16, 3))
    grey = parse_hint(f"depth:{tmp_path / 'far.npz'}").read((16, 16, 1))
    np.testing.assert_allclose(grey, made[..., :1], atol=1e-6)
    with pytest.raises(ValueError, match="hints of 4 are asked for"):
        parse_hint(str(file)).read((16, 16, 4))
    assert made.shape == (16, 16, 3) and made[0, 0, 0] == 1 and made[-1, -1, 0] == 0
    with pytest.raises(ValueError, match=r"positive numbers of shape \(8, 8\)"):
        parse_hint(f"depth:{tmp_path / 'far.npz'}").read((8, 8, 3))
    larger = parse_hint(f"depth:{tmp_path / 'far.npz'}").read((32, 32, 3), 2)  # of an upscaled picture
    np.testing.assert_allclose(larger.reshape(16, 2, 16, 2, 3).mean((1, 3))[1:-1], made[1:-1], atol=0.02)
    with pytest.raises(ValueError, match=r"made by edges, canny, low, colors, depth, pose, got 'lines'"):
        parse_hint(f"lines:{file}")
    with pytest.raises(ValueError, match="does not exist"):
        parse_hint("edges:none.png")


def test_faces_are_embeddings_from_files(tmp_path):
    face = np.linspace(-1, 1, 5)
    np.save(tmp_path / "a.npy", face[None])
    np.savez(tmp_path / "a.npz", embedding=face.astype(np.float32), depth=np.ones((4, 4)))
    np.savez(tmp_path / "b.npz", faces=face)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "a.png")
    for name in ("a.npy", "a.npz"):
        got = parse_hint(str(tmp_path / name)).read((5,))
        np.testing.assert_array_equal(got, face.astype(np.float32))
        with pytest.raises(ValueError, match=r"must hold the embedding of a face, 512 numbers: .* got float\d\d, \("):
            parse_hint(str(tmp_path / name)).read((512,))
        with pytest.raises(ValueError, match=rf"{name} must be a picture"):
            parse_hint(str(tmp_path / name)).read((4, 4, 3))
    with pytest.raises(ValueError, match='got no "embedding"'):
        parse_hint(str(tmp_path / "b.npz")).read((5,))
    for text in (str(tmp_path / "a.png"), f"canny:{tmp_path / 'a.png'}"):
        with pytest.raises(ValueError, match=r"takes the embedding of one, 5 numbers: an .npy file, or an .npz file"):
            parse_hint(text).read((5,))
    both = {"embedding": (5,), "picture": None}
    picture = np.full((4, 6, 3), 51, np.uint8)
    np.savez(tmp_path / "plus.npz", embedding=face, picture=picture, shortcut=0.5)
    got = parse_hint(str(tmp_path / "plus.npz")).read(both)
    assert got.keys() == {"embedding", "picture", "shortcut"} and got["shortcut"] == 0.5
    np.testing.assert_allclose(got["picture"], 0.2, rtol=1e-6)
    np.savez(tmp_path / "plus.npz", embedding=face, picture=picture / 51)
    assert parse_hint(str(tmp_path / "plus.npz")).read(both).keys() == {"embedding", "picture"}
    for wrong in ({"picture": picture + 0.5}, {"picture": picture[..., 0]}, {"picture": picture, "shortcut": face}, {}):
        np.savez(tmp_path / "wrong.npz", embedding=face, **wrong)
        with pytest.raises(
            ValueError, match=r'must hold "picture", \[H, W, 3\], bytes or floats in \[0, 1\], and maybe'
        ):
            parse_hint(str(tmp_path / "wrong.npz")).read(both)
    with pytest.raises(ValueError, match=r'takes an .npz file of "embedding" and "picture", got .*a.npy'):
        parse_hint(str(tmp_path / "a.npy")).read(both)
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    whole = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "short.npy").write_bytes(whole[:-1])
    (tmp_path / "text.npy").write_bytes(b"embedding")
    for name in ("objects", "short", "text"):
        with pytest.raises(ValueError, match=rf"cannot read .*{name}.npy as an .npy file"):
            parse_hint(str(tmp_path / f"{name}.npy")).read((5,))


@pytest.mark.slow
def test_poses_are_read_in_pixels_or_of_a_canvas(tmp_path):
    joints = np.zeros((2, 18, 3))
    joints[:, 1:3] = [[[4, 4, 1], [12, 8, 0.5]], [[3, 12, 1], [9, 12, 1]]]
    people, file = [{"pose_keypoints_2d": each.ravel().tolist()} for each in joints], tmp_path / "a.json"
    file.write_text(json.dumps({"version": 1.3, "people": people}))
    got = parse_hint(f"pose:{file}").read((16, 24, 3))
    np.testing.assert_array_equal(got, hints.pose(joints[None].astype(np.float32), (16, 24))[0])
    assert got.shape == (16, 24, 3) and len(np.unique(got.reshape(-1, 3), axis=0)) == 4  # a limb, two joints and black
    larger = parse_hint(f"pose:{file}").read((32, 48, 3), 2)  # of an upscaled picture
    np.testing.assert_array_equal(larger, hints.pose((joints[None] * [2, 2, 1]).astype(np.float32), (32, 48))[0])
    file.write_text(json.dumps({"people": people, "canvas_width": 48, "canvas_height": 32}))
    half = parse_hint(f"pose:{file}").read((16, 24, 3))
    np.testing.assert_array_equal(half, hints.pose((joints[None] * [0.5, 0.5, 1]).astype(np.float32), (16, 24))[0])
    file.write_text(json.dumps({"people": []}))
    assert not parse_hint(f"pose:{file}").read((16, 24, 3)).any()
    for wrong in ({}, {"people": [{"pose_keypoints_2d": [1.0] * 75}]}, {"people": people, "canvas_width": 0}):
        file.write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match='must hold "people", each with 18 times x, y and confidence'):
            parse_hint(f"pose:{file}").read((16, 24, 3))
    with pytest.raises(ValueError, match="this control's have any"):
        parse_hint(f"pose:{file}").read(None)


@pytest.mark.slow
def test_pictures_follow_their_hint(tmp_path):
    directory, control = tiny.write(tmp_path / "model"), tiny.write_control(tmp_path / "control")
    file = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)).save(file)
    common = ["sample", str(directory), "--prompt", "a cat", "--steps", "2", "--guidance", "1"]
    drawn = {}
    for kind, scale in (("edges", "0"), ("low", "0"), ("edges", "1")):
        steered = ["--control", str(control), f"{kind}:{file}", scale]
        with nullcontext() if scale == "1" else one_device():
            main([*common, "--out", str(tmp_path / "a.npz"), *steered])
        drawn[kind, scale] = np.load(tmp_path / "a.npz")["x"]
    np.testing.assert_array_equal(drawn["edges", "0"], drawn["low", "0"])
    assert np.abs(drawn["edges", "1"] - drawn["edges", "0"]).max() > 1e-3


@pytest.mark.slow
def test_pictures_show_an_image_of_another_size(tmp_path):
    directory, adapter = tiny.write(tmp_path / "model"), tiny.write_ip_adapter(tmp_path / "ip")
    picture = np.random.default_rng(0).integers(0, 256, (20, 11, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    Image.fromarray(picture[..., ::-1]).save(tmp_path / "b.png")
    drawn = []
    for file, scale in (("a", "1"), ("b", "1"), ("a", "0")):
        shown = ["--control", str(adapter), str(tmp_path / f"{file}.png"), scale, "--out", str(tmp_path / "x.npz")]
        with one_device():
            main(["sample", str(directory), "--prompt", "a cat", "--steps", "2", *shown])
        drawn.append(np.load(tmp_path / "x.npz")["x"])
    assert all(np.abs(a - b).max() > 1e-5 for a, b in ((drawn[0], drawn[1]), (drawn[0], drawn[2])))
