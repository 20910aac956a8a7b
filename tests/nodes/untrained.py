"""A checkpoint in the demo's layout with random weights: all that the nodes need, learnt nothing.

`python -m mmada_parallel.tests.nodes.untrained FOLDER` writes one for a look by hand.
"""

import json
import sys
from pathlib import Path

import torch
from mmada_parallel.demo.tokenizer import model_config, write_tokenizer
from mmada_parallel.demo.vq import vq_config
from mmada_parallel.mmp_core.image.amused import AmusedVQ
from mmada_parallel.mmp_core.model.config import ModelConfig
from mmada_parallel.mmp_core.model.transformer import MaskedDiffusionTransformer
from safetensors.torch import save_file

SIZES = {"d_model": 64, "n_layers": 2, "n_heads": 2, "mlp_hidden_size": 128}


def write_untrained(folder, **changes):
    """``changes``: of config.json."""
    folder.mkdir(parents=True)
    config = model_config(**SIZES) | changes
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder)
    torch.manual_seed(0)
    transformer = MaskedDiffusionTransformer(ModelConfig.from_dict(config))
    save_file(transformer.state_dict(), folder / "model.safetensors")
    (folder / "vqvae").mkdir()
    (folder / "vqvae" / "config.json").write_text(json.dumps(vq_config()))
    weights = folder / "vqvae" / "diffusion_pytorch_model.safetensors"
    save_file(AmusedVQ(vq_config()).state_dict(), weights)
    return folder


if __name__ == "__main__":
    write_untrained(Path(sys.argv[1]))
