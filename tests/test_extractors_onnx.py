"""The extractor `onnx:`: layouts, pools, fixed batches, tensors inside the graph, and the JSON beside the file."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmn_fast.errors import InputError
from mmn_fast.features.extractors import extractor_for, make_extractor
from mmn_fast.features.extractors.steps import FrameSteps, resized_sides
from tests.tolerances import check_close

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("PIL")

SIDE = 8
FRAMES = np.random.default_rng(0).integers(0, 256, (7, 12, 16, 3), np.uint8)
JSON: dict[str, Any] = {
    "layout": "NCHW",
    "colour": "bgr",
    "resize": {"shortest_edge": 10, "filter": "bilinear"},
    "crop": {"height": SIDE, "width": SIDE},
    "scale": None,
    "mean": [104, 117, 123],
    "std": None,
    "fps": 2,
    "clip_frames": 1,
}
STEPS = FrameSteps(JSON["resize"], JSON["crop"], None, (104, 117, 123), None, "bgr")
WEIGHTS = np.random.default_rng(1).standard_normal((3 * SIDE * SIDE, 5)).astype(np.float32)
PREPARED = np.stack([STEPS(frame) for frame in FRAMES])
EXPECTED = PREPARED.reshape(7, -1) @ WEIGHTS


def graph(path: Path, shape: list[Any], order: list[int], *, kind: str = "FLOAT", outputs: int = 1, **said: Any) -> str:
    """Write a network that transposes its input, flattens it and multiplies it by `WEIGHTS`; return its spec."""
    helper, type_ = onnx.helper, getattr(onnx.TensorProto, kind)
    frames = int(np.prod(shape[1:]) // (3 * SIDE * SIDE)) if all(isinstance(one, int) for one in shape[1:]) else 1
    weights = np.concatenate([WEIGHTS] * frames) / np.float32(frames)
    nodes = [
        helper.make_node("Cast", ["x"], ["float"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["planes"], perm=order),
        helper.make_node("Flatten", ["planes"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["y"]),
        helper.make_node("Neg", ["hidden"], ["z"]),
    ]
    made = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("y", "z")[:outputs]]
    whole = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", type_, shape)],
        made,
        [onnx.numpy_helper.from_array(weights.astype(np.float32), "w")],
    )
    onnx.save(helper.make_model(whole, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    path.with_suffix(".json").write_text(json.dumps({**JSON, **said}))
    return f"onnx:{path}"


def rows_of(spec: str, frames: np.ndarray = FRAMES, **options: Any) -> np.ndarray:
    return np.concatenate(list(make_extractor(spec, threads=1, **options).stream(iter(frames))))


@pytest.mark.parametrize(
    ("layout", "shape", "order"),
    [
        ("NCHW", ["n", 3, SIDE, SIDE], [0, 1, 2, 3]),
        ("NHWC", [1, SIDE, SIDE, 3], [0, 3, 1, 2]),
        ("NCHW", [4, 3, 8, 8], [0, 1, 2, 3]),
    ],
)
def test_an_image_network_gets_frames_in_its_layout(
    layout: str, shape: list[Any], order: list[int], tmp_path: Path
) -> None:
    spec = graph(tmp_path / "net.onnx", shape, order, layout=layout)
    extractor = make_extractor(spec, threads=1, batch_size=3)
    contract = extractor.contract
    assert (contract.width, contract.output, contract.colour, contract.fps) == (5, "y", "bgr", 2)
    assert contract.weights_sha256 == hashlib.sha256((tmp_path / "net.onnx").read_bytes()).hexdigest()
    assert (contract.resize, contract.crop, contract.mean) == (JSON["resize"], JSON["crop"], (104, 117, 123))
    check_close(rows_of(spec, batch_size=3), np.maximum(EXPECTED, 0), "network_features")
    assert np.array_equal(
        np.concatenate(list(extractor_for(contract, threads=1, batch_size=3).stream(FRAMES))),
        rows_of(spec, batch_size=3),
    )
    pairs = np.maximum(EXPECTED, 0)[:6].reshape(3, 2, -1).mean(axis=1)
    check_close(rows_of(spec, clip_frames=2)[:3], pairs, "network_features")


@pytest.mark.parametrize(
    ("layout", "shape", "order"),
    [
        ("NCTHW", ["n", 3, 3, SIDE, SIDE], [0, 2, 1, 3, 4]),
        ("NTCHW", ["n", 3, 3, SIDE, SIDE], [0, 1, 2, 3, 4]),
        ("NTHWC", [1, 3, SIDE, SIDE, 3], [0, 1, 4, 2, 3]),
    ],
)
def test_a_clip_network_gets_clips_in_its_layout(
    layout: str, shape: list[Any], order: list[int], tmp_path: Path
) -> None:
    spec = graph(tmp_path / "net.onnx", shape, order, layout=layout, clip_frames=3, stride=2)
    expected = np.maximum(np.stack([EXPECTED[start : start + 3].mean(axis=0) for start in (0, 2, 4)]), 0)
    check_close(rows_of(spec), expected, "network_features")
    tail = np.maximum((EXPECTED[6] * 3) / 3, 0)
    apart = rows_of(spec, stride=6)
    check_close(apart, np.stack([expected[0], tail]), "network_features")
    with pytest.raises(InputError, match=r"clip_frames: .*net\.onnx takes 3, got 2"):
        make_extractor(spec, clip_frames=2)


def test_a_tensor_inside_the_network_can_be_the_row(tmp_path: Path) -> None:
    spec = graph(tmp_path / "net.onnx", ["n", 3, SIDE, SIDE], [0, 1, 2, 3], outputs=2, output="hidden")
    check_close(rows_of(spec), EXPECTED, "network_features")
    check_close(rows_of(spec, output="z"), -EXPECTED, "network_features")
    with pytest.raises(InputError, match=r"no tensor 'hiden', did you mean 'hidden'\?; it has 2 outputs \('y', 'z'\)"):
        make_extractor(spec, output="hiden")
    spec = graph(tmp_path / "two.onnx", ["n", 3, SIDE, SIDE], [0, 1, 2, 3], outputs=2)
    with pytest.raises(InputError, match=r"expected the name of the output in its JSON, got none; it has 2 outputs"):
        make_extractor(spec)


def test_an_output_of_positions_becomes_a_row(tmp_path: Path) -> None:
    shape = ["n", 3, SIDE, SIDE]
    spec = graph(tmp_path / "a.onnx", shape, [0, 1, 2, 3], output="planes", pool="mean-channels-first")
    check_close(rows_of(spec), PREPARED.mean(axis=(2, 3)), "network_features")
    contract = make_extractor(spec).contract
    assert contract.output == "planes:mean-channels-first"
    assert extractor_for(contract).contract == contract
    check_close(rows_of(spec, output="y"), np.maximum(EXPECTED, 0), "network_features")
    spec = graph(tmp_path / "b.onnx", shape, [0, 2, 3, 1], output="planes", pool="mean-channels-last")
    check_close(rows_of(spec), PREPARED.mean(axis=(2, 3)), "network_features")
    spec = graph(tmp_path / "c.onnx", shape, [0, 1, 2, 3], output="planes")
    with pytest.raises(InputError, match=r"its output 'planes' is \[1, 3, 8, 8\]; pool in the JSON says how"):
        make_extractor(spec)


def test_a_network_of_8_bits_gets_pixels(tmp_path: Path) -> None:
    shape = ["n", 3, SIDE, SIDE]
    spec = graph(tmp_path / "a.onnx", shape, [0, 1, 2, 3], kind="UINT8", mean=None, output="hidden")
    pixels = np.stack([FrameSteps(JSON["resize"], JSON["crop"], colour="bgr")(frame) for frame in FRAMES])
    check_close(rows_of(spec), pixels.reshape(7, -1) @ WEIGHTS, "network_features")
    spec = graph(tmp_path / "b.onnx", shape, [0, 1, 2, 3], kind="UINT8")
    with pytest.raises(InputError, match="its input is uint8, so scale, mean and std must be null"):
        make_extractor(spec)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"layout": "NWHC"}, r"net\.json: layout: expected 'NCHW' or 'NHWC' or "),
        ({"colour": "grey"}, r"net\.json: colour: expected 'rgb' or 'bgr', got 'grey'"),
        ({"fps": 0}, r"net\.json: fps: expected a number > 0"),
        ({"crop": {"height": 3}}, r"net\.json: crop: missing width"),
        ({"pool": "max"}, r"net\.json: pool: expected 'mean-channels-first' or "),
        ({"speed": 3}, r"net\.json: unknown key 'speed'"),
        (
            {"crop": {"height": 9, "width": 9}},
            r"its input 'x' is \['n', 3, 8, 8\], and the layout NCHW of its JSON, .*3, 9, 9\]",
        ),
        ({"layout": "NTCHW"}, r"its input 'x' is \['n', 3, 8, 8\], and the layout NTCHW"),
        ({"input": "y"}, r"no input 'y'; it has 1 input \('x'\)"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(said: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"^extractor: .*{message}"):
        make_extractor(graph(tmp_path / "net.onnx", ["n", 3, SIDE, SIDE], [0, 1, 2, 3], **said))


def test_files_that_are_no_network_are_refused(tmp_path: Path) -> None:
    spec = graph(tmp_path / "net.onnx", ["n", 3, SIDE, SIDE], [0, 1, 2, 3])
    for options, message in (
        ({"device": "gpu"}, "device: expected auto, cpu, cuda or cuda:N, got 'gpu'"),
        ({"precision": "fp16"}, "precision: the extractor 'onnx' has the precision of its file, got 'fp16'"),
    ):
        with pytest.raises(InputError, match=f"^{message}"):
            make_extractor(spec, **options)
    del JSON["fps"]
    try:
        graph(tmp_path / "less.onnx", ["n", 3, SIDE, SIDE], [0, 1, 2, 3])
    finally:
        JSON["fps"] = 2
    (tmp_path / "text.onnx").write_text("text")
    (tmp_path / "text.json").write_text(json.dumps(JSON))
    (tmp_path / "half.onnx").write_bytes((tmp_path / "net.onnx").read_bytes()[:-200])
    (tmp_path / "half.json").write_text(json.dumps(JSON))
    (tmp_path / "alone.onnx").write_bytes((tmp_path / "net.onnx").read_bytes())
    for name, message in (
        ("less", r"less\.json: missing fps"),
        ("text", r"text\.onnx: truncated, damaged or no ONNX file"),
        ("half", r"half\.onnx: truncated, damaged or no ONNX file"),
        ("alone", r"alone\.json: No such file or directory"),
        ("absent", r"absent\.onnx: no such file"),
    ):
        with pytest.raises(InputError, match=f"^extractor: .*{message}"):
            make_extractor(f"onnx:{tmp_path / name}.onnx")


def test_weights_in_files_of_their_own_count_for_the_sha256(tmp_path: Path) -> None:
    graph(tmp_path / "net.onnx", ["n", 3, SIDE, SIDE], [0, 1, 2, 3])
    model = onnx.load(str(tmp_path / "net.onnx"))
    digests = []
    for scale in (1, 2):
        for weights in model.graph.initializer:
            values = onnx.numpy_helper.to_array(weights) * scale
            weights.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32), weights.name))
        folder = tmp_path / str(scale)
        folder.mkdir()
        onnx.save(model, str(folder / "net.onnx"), save_as_external_data=True, location="net.data", size_threshold=0)
        model = onnx.load(str(folder / "net.onnx"))
        (folder / "net.json").write_text(json.dumps(JSON))
        digests.append(make_extractor(f"onnx:{folder / 'net.onnx'}").contract.weights_sha256)
    assert (tmp_path / "1/net.onnx").read_bytes() == (tmp_path / "2/net.onnx").read_bytes()
    assert digests[0] != digests[1]


@pytest.mark.parametrize(
    ("resize", "sides"),
    [
        ({"height": 3, "width": 5}, (3, 5)),
        ({"shortest_edge": 224}, (224, 398)),
        ({"shortest_edge": 224, "longest_edge": 300}, (168, 300)),
        ({"longest_edge": 100}, (56, 100)),
        ({"max_side": 100}, (56, 100)),
        ({"max_side": 4000}, (1080, 1920)),
    ],
)
def test_sides_after_a_resize(resize: dict[str, Any], sides: tuple[int, int]) -> None:
    assert resized_sides(1080, 1920, resize) == sides
    assert resized_sides(1920, 1080, resize) == (sides if "height" in resize else sides[::-1])


def test_a_frame_smaller_than_the_crop_is_refused() -> None:
    steps = FrameSteps(crop={"height": 20, "width": 8})
    with pytest.raises(
        InputError, match="frames: expected at least 8 x 20 pixels to crop after the resize, got 16 x 12"
    ):
        steps(FRAMES[0])
