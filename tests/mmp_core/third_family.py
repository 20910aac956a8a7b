"""A made-up checkpoint family, known to the tests alone: its answer stands before its prompt, text
before the image, and is an image alone or text alone."""

import json

import torch
import torch.nn.functional as F
from mmada_parallel.mmp_core.image.pictures import squash_image
from mmada_parallel.mmp_core.image.tokenizer import ImageTokenizer
from mmada_parallel.mmp_core.state import Prompt
from mmada_parallel.mmp_core.variants.base import Layout, ModelInput, Variant, column
from mmada_parallel.tests.mmp_core import tiny
from safetensors.torch import save_file

SPECIAL = ("<|endoftext|>", "<|mdm_mask|>", "<card>", "<nothing>")
COLOURS = 6
SIDE = 12


class Palette(ImageTokenizer):
    """One of a few colours for each 3x3 pixels."""

    downsample, codebook_size, vector_width, pixel_range = 3, COLOURS, 3, (0.0, 1.0)

    def __init__(self, config, *, operations=torch.nn, dtype=None, device=None):
        super().__init__(config)
        self.colours = torch.nn.Parameter(torch.empty(COLOURS, 3, dtype=dtype, device=device))

    def latents(self, pixels):
        return F.avg_pool2d(pixels.to(self.colours.dtype), self.downsample)

    def nearest(self, latents):
        distances = (latents[:, None] - self.colours[None, :, :, None, None]).square().sum(2)
        return distances.argmin(1)

    def vectors(self, codes):
        return self.colours[codes].permute(0, 3, 1, 2)

    def decode_vectors(self, vectors):
        return F.interpolate(vectors, scale_factor=self.downsample)


class PostcardLayout(Layout):
    """``text | codes, last first | card instruction [codes]``."""

    def __init__(self, tokenizer, config):
        super().__init__(tokenizer, config, image_offset=len(tokenizer))
        self.card, self.nothing = (self.token_id(name, {}) for name in ("<card>", "<nothing>"))
        self.end_of_text, self.pads_text = config["eos_token_id"], True

    def encode(self, instruction, image, initial):
        words = torch.tensor([self.tokenizer(instruction)["input_ids"]]).expand(initial.batch, -1)
        return Prompt(words, torch.full_like(words, self.nothing), image, initial)

    def model_input(self, prompt, state, *, drop_text=False, drop_image=False):
        words = prompt.unconditional if drop_text else prompt.instruction
        text, codes = self.text_ids(state.text), self.image_ids(state.image).flatten(1).flip(1)
        segments = [text, codes, column(words, self.card), words]
        if prompt.image is not None and not drop_image:
            segments.append(self.image_ids(prompt.image).flatten(1))
        length, cells = text.shape[1], codes.shape[1]
        ids = torch.cat(segments, dim=1)
        places = torch.arange(length + cells, device=ids.device)
        return ModelInput(ids, places[length:].flip(0), places[:length])


class Postcard(Variant):
    id = "P"
    name = "Postcard"
    answers = frozenset({"text", "image"})
    image_tokenizer = Palette
    image_folders = ("palette",)
    image_advice = "put the palette folder into {folder}"

    def recognises(self, config):
        """As tiny weights of variant A: only the user can tell."""
        return "LLaDAForMultiModalGeneration" in config["architectures"]

    def layout(self, tokenizer, config):
        return PostcardLayout(tokenizer, config)

    def input_size(self, size, side, unit):
        return side, side - unit

    def fit(self, image, size, *, offset="center"):
        return squash_image(image, size)


def write_checkpoint(folder):
    tokens = tiny.tokenizer_of(SPECIAL)
    config = tiny.config_of(tokens, COLOURS) | {
        "architectures": ["LLaDAForMultiModalGeneration"],
        "text_vocab_size": len(tokens),
        "default_image_size": SIDE,
        "default_text_length": 5,
    }
    (folder / "palette").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    tokens.save_pretrained(folder)
    save_file(tiny.transformer_of(config).state_dict(), folder / "model.safetensors")
    colours = torch.rand(COLOURS, 3, generator=torch.Generator().manual_seed(0))
    save_file({"colours": colours}, folder / "palette" / "model.safetensors")
    (folder / "palette" / "config.json").write_text("{}")
    return folder
