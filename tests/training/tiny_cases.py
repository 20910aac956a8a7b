"""Cases and rewards for models of a few thousand weights (see tests/mmp_core/tiny.py)."""

import torch
from mmada_parallel.mmp_core import MASKED, SamplerSettings, TokenState, load_checkpoint
from mmada_parallel.tests.mmp_core.tiny import WORDS, write_checkpoint
from mmada_parallel.training.cases import Case
from mmada_parallel.training.pararl.run import ParaRLRun
from mmada_parallel.training.pararl.settings import ParaRLSettings
from mmada_parallel.training.weights.policies import LoRA

SAMPLER = SamplerSettings(text_steps=3, image_steps=2, text_temperature=1.0, joint_guidance=0.0)
QUICK = ParaRLSettings(
    steps=4,
    groups=2,
    group_size=4,
    scored_steps=2,
    reward_at="trajectory",
    learning_rate=1e-2,
    warmup_steps=0,
    micro_batch=5,
    gradient_checkpointing=False,
    checkpoint_every=100,
    kl=0.01,
    sampler=SAMPLER,
)


def tiny_model(folder, variant="A"):
    return load_checkpoint(write_checkpoint(folder, variant), dtype=torch.float32)


def cases(model, count=3, *, text=4, grid=(2, 3), seed=0):
    """To edit and to generate in turn, everything undecided."""
    rng = torch.Generator().manual_seed(seed)
    found = []
    for number in range(count):
        image = None
        if number % 2 == 0:
            image = torch.randint(model.layout.codebook_size, (1, 2, 2), generator=rng)
        instruction = f"make it {WORDS[1 + number % 2]}"
        prompt = model.layout.encode(instruction, image, TokenState.masked(1, text, grid))
        found.append(Case(f"case {number}", prompt, instruction, None))
    return found


def one_open(model, modality, place=1, *, text=3, grid=(2, 2)):
    """A case in which nothing is to be decided but one token of the text or of the image."""
    state = TokenState.masked(1, text, grid)
    decided = {"text": torch.ones(1, text), "image": torch.ones(1, *grid)}
    tokens = {name: value.to(torch.int64) for name, value in decided.items()}
    tokens[modality].view(1, -1)[0, place] = MASKED
    state = TokenState(tokens["text"], tokens["image"])
    return Case("one", model.layout.encode("make it red", None, state), "make it red", None)


def redness(pairs):
    """How often the text says red."""
    return torch.tensor([float(pair.text.split().count("red")) for pair in pairs])


def brightness(pairs):
    """Of the picture, and the length of the text: never quite the same twice."""
    return torch.tensor(
        [
            sum(pair.picture.convert("L").histogram()[128:]) / 100 + len(pair.text) / 10
            for pair in pairs
        ]
    )


def new_run(model, folder, settings=QUICK, *, reward=brightness, own=None, **options):
    policy = LoRA(model.transformer, rank=2, seed=3)
    return ParaRLRun(model, own or cases(model), reward, settings, folder, policy=policy, **options)


def state_of(run):
    return {name: value.clone() for name, value in run.policy.state_dict().items()}
