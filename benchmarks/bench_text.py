"""Times the sentence side on the CPU: the native text encoder beside PyTorch, in turn, on 32 sentences of 8 videos.

`official` follows the official inference: one call per video, its sentences padded to the longest, in eager float32.
`batched` puts all sentences into one padded call. The weights come from a full-size golden case, at DistilBERT's sizes;
word pieces are made once, outside the timing. The error is the largest difference of an embedding (unit norm) from
the reference in float64.

    python -m benchmarks.bench_text [--threads 2] [--repeats 9] [--videos 8]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.golden import cases
from benchmarks.timing import alternate, record
from mmn_fast.kernels.cpu.conv import has_bf16
from mmn_fast.kernels.cpu.text import NativeTextEncoder
from mmn_fast.kernels.host import cpu_isa
from mmn_fast.presets import TextEncoderConfig
from mmn_fast.text_encoder import TextEncoder
from mmn_fast.tokenizer import load_tokenizer

# The first eight videos with four sentences in Charades-STA's test split.
SENTENCES = {
    "3MSZA": [
        "person turn a light on.",
        "person flipped the light switch near the door.",
        "person turn the light switch on.",
        "person is playing with the switch for the light.",
    ],
    "F7TG5": [
        "person sits in a chair.",
        "person sits down on a chair.",
        "person throwing a blanket onto the vacuum.",
        "person they throw their clothes on to a nearby desk.",
    ],
    "5NV2Z": [
        "person takes a cup off a desk.",
        "person opens the front door.",
        "the person opens a door leading outside.",
        "a person takes a cup from a table.",
    ],
    "V2GC9": [
        "person putting groceries away.",
        "person opening a pantry door.",
        "a person walks through the house holding a bag.",
        "person put groceries away.",
    ],
    "XMYXI": [
        "a person sits in a chair.",
        "person he begins to laugh at something.",
        "a man is sitting at a chair.",
        "a person is smiling.",
    ],
    "8MQH6": [
        "a person opens a closet door.",
        "a person opens up the closet.",
        "a person opens a closet.",
        "person they hold the shoes.",
    ],
    "G30NS": [
        "person puts it into a box.",
        "person puts the box down.",
        "person putting things on a shelf.",
        "the person takes a large blanket.",
    ],
    "UM5II": [
        "the person eats a few bite.",
        "a person is sneezing on the medicine.",
        "person starts sneezing.",
        "a person is sneezing.",
    ],
}

Ids = list[np.ndarray]
Run = Callable[[], np.ndarray]


def _padded(ids: Ids) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = [len(sentence) for sentence in ids]
    padded = np.zeros((len(ids), max(lengths)), np.int64)
    for row, sentence in zip(padded, ids, strict=True):
        row[: len(sentence)] = sentence
    return torch.from_numpy(padded), torch.tensor(lengths)


def _encode(net: TextEncoder, ids: Ids) -> np.ndarray:
    """Encode sentences; return both branches [2, S, J], unit norm."""
    return torch.stack([F.normalize(branch.float(), dim=-1) for branch in net(*_padded(ids))]).numpy()


def _torch_runs(net: TextEncoder, ids: Ids, per_video: int) -> dict[str, Run]:
    def official() -> np.ndarray:
        with torch.inference_mode():
            return np.concatenate([_encode(net, ids[n : n + per_video]) for n in range(0, len(ids), per_video)], axis=1)

    def batched() -> np.ndarray:
        with torch.inference_mode():
            return _encode(net, ids)

    def bf16() -> np.ndarray:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            return _encode(net, ids)

    return {"official fp32": official, "batched PyTorch fp32": batched, "batched PyTorch bf16": bf16}


def _flops(sizes: TextEncoderConfig, ids: Ids) -> int:
    """Count FLOP of the linear maps and of attention, for real tokens only."""
    H, tokens = sizes.width, sum(len(sentence) for sentence in ids)
    linear = 2 * tokens * (4 * H * H + 2 * H * sizes.ffn_width)
    return sizes.num_layers * (linear + sum(4 * len(sentence) ** 2 * H for sentence in ids))


def main() -> None:
    """Run the benchmark and append its line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--videos", type=int, default=len(SENTENCES))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    case = cases.load("charades_full")
    prefix = "text_encoder."
    state = {name.removeprefix(prefix): array for name, array in case.state().items() if name.startswith(prefix)}
    net = TextEncoder(case.text, case.preset.joint_size).eval()
    net.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
    videos = list(SENTENCES.values())[: options.videos]
    ids = load_tokenizer(cases.VOCAB).encode([sentence for sentences in videos for sentence in sentences])

    runs: dict[str, Run] = {}
    for precision in ("fp32", "bf16") if has_bf16() else ("fp32",):
        encoder = NativeTextEncoder(state, case.text, precision)
        runs[f"mmn_fast {precision}"] = lambda encoder=encoder: np.stack(encoder(ids, options.threads))
    runs |= _torch_runs(net, ids, len(videos[0]))
    with torch.inference_mode():
        branches = net.double()(*_padded(ids))
        expected = torch.stack([F.normalize(branch, dim=-1) for branch in branches]).numpy()
    net.float()
    errors = {name: float(np.abs(run() - expected).max()) for name, run in runs.items()}

    timings = alternate(runs, options.repeats)
    flops = _flops(case.text, ids)
    for name, timing in timings.items():
        print(
            f"{name:22} median {timing.median_ms:7.1f} ms  p20 {timing.p20_ms:7.1f}  p80 {timing.p80_ms:7.1f}"
            f"  official takes {timings['official fp32'].median_ms / timing.median_ms:5.2f} times as long"
            f"  {flops / timing.median_ms / 1e6:6.1f} GFLOP/s  error {errors[name]:.1e}"
        )
    record(
        "bench_text",
        timings,
        errors["mmn_fast fp32"],
        stage="encode_text",
        videos=len(videos),
        sentences=len(ids),
        tokens=sum(len(sentence) for sentence in ids),
        gflop=flops / 1e9,
        threads=options.threads,
        isa=cpu_isa(),
        errors=errors,
        ratios={name: timings["official fp32"].median_ms / timing.median_ms for name, timing in timings.items()},
    )


if __name__ == "__main__":
    main()
