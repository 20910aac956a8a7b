"""What converting a checkpoint takes: peak memory and time at the released model's widths.

``python -m mmada_parallel.benchmarks.convert [--layers 2] [--folder /tmp]`` writes random weights
in the released layout (3.1 GB for two layers), converts them in a process of its own for each
format, deletes both and prints JSON. Memory depends on the largest tensors, which are those of the
released model, and not on the number of layers. Linux only: memory is read from /proc.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from mmada_parallel.benchmarks.measure import parser_of
from mmada_parallel.demo.tokenizer import model_config, write_tokenizer
from mmada_parallel.mmp_core.checkpoint.convert import KINDS
from mmada_parallel.mmp_core.checkpoint.load import DEMO
from mmada_parallel.mmp_core.model.config import ModelConfig
from mmada_parallel.mmp_core.model.transformer import MaskedDiffusionTransformer
from safetensors.torch import save_file
from torch import nn

_ROWS = 134656
_NOISE = 2**22
_CHILD = """
import json, re, sys
from mmada_parallel.mmp_core.checkpoint.convert import convert
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
before = peak()
convert(sys.argv[1], sys.argv[2], quantize=sys.argv[3])
print(json.dumps({"peak_gb": peak() / 1e9, "peak_before_converting_gb": before / 1e9}))
"""


def write_source(folder: Path, layers: int) -> None:
    """A checkpoint of the released widths with random bf16 weights, one shard per layer."""
    sizes = {"d_model": 4096, "n_layers": layers, "n_heads": 32, "mlp_hidden_size": 12288}
    config = model_config(**sizes) | {"vocab_size": _ROWS, "embedding_size": _ROWS}
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder)
    shutil.copytree(DEMO / "vqvae", folder / "vqvae")
    outline: nn.Module = MaskedDiffusionTransformer(ModelConfig.from_dict(config), device="meta")
    shards: dict[str, list[str]] = {}
    for name in outline.state_dict():
        block = name.split(".")[3] if ".blocks." in name else name.split(".")[2]
        shards.setdefault(f"model-{block}.safetensors", []).append(name)
    noise = torch.randn(_NOISE).bfloat16() * 0.02
    for shard, names in shards.items():
        shapes = {name: outline.get_parameter(name).shape for name in names}
        save_file({name: _filled(noise, shape) for name, shape in shapes.items()}, folder / shard)
    places = {name: shard for shard, names in shards.items() for name in names}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))


def _filled(noise: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """``noise`` again and again, in this shape."""
    return noise.repeat(-(-shape.numel() // _NOISE))[: shape.numel()].reshape(shape).clone()


def measured(source: Path, out: Path, kind: str) -> dict[str, float]:
    began = time.perf_counter()
    command = [sys.executable, "-c", _CHILD, str(source), str(out), kind]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    results = {**json.loads(done.stdout), "seconds": seconds, "file_gb": out.stat().st_size / 1e9}
    out.unlink()
    return {name: round(value, 3) for name, value in results.items()}


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        source = Path(folder, "source")
        source.mkdir()
        write_source(source, args.layers)
        stored = sum(file.stat().st_size for file in source.rglob("*.safetensors"))
        kinds = {kind: measured(source, Path(folder, "out.safetensors"), kind) for kind in KINDS}
    print(json.dumps({"layers": args.layers, "source_gb": round(stored / 1e9, 3), **kinds}))


if __name__ == "__main__":
    main()
