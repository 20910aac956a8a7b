"""Makes the parity cases of MMaDA-8B by running the released code on the recipe's small weights.

``python -m mmada_parallel.tests.parity.make_mmada_8b --reference FOLDER``, a checkout of
Gen-Verse/MMaDA 3cdb870, writes ``data/mmada_8b/``; one thread. Of the reference only
``models/modeling_mmada.py``, ``training/prompting_utils.py`` and ``training/utils.py`` are run.
"""

import argparse
import functools
import hashlib
import json
import sys
import types
from pathlib import Path

import torch
from mmada_parallel.tests.parity import golden
from PIL import Image
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerFast

OUT = Path(__file__).parent / "data" / "mmada_8b"
MASK, OFFSET, CODES, LONGEST = 126336, 126349, 8192, 512
TEMPLATE = (
    # generate.py and app.py
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = "
    "'<|start_header_id|>' + message['role'] + '<|end_header_id|>\n'+ message['content'] | trim + "
    "'<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
    "{{ content }}{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\n' }}"
)
T2I = dict(task="t2i", dtype="fp32", prompt="a red circle", codes=48, steps=6, guidance=3.5)
T2I |= dict(temperature=1.0, seed=1, generator=True, given=0.0)
MMU = dict(task="mmu", dtype="fp32", prompt=["what is it?"], codes=30, length=24, steps=12)
MMU |= dict(block=8, temperature=0.0, guidance=0.0, remasking="low_confidence", seed=1)
CASES = {
    "t01_script_like": T2I | dict(codes=1024, steps=15, generator=False),
    "t02_small": T2I,
    "t03_no_guidance": T2I | dict(guidance=0.0, seed=3),
    "t04_masked_part": T2I | dict(given=0.6, seed=4),
    "t05_many_steps_few_codes": T2I | dict(codes=6, steps=10, seed=5),
    "t06_no_noise": T2I | dict(temperature=0.0, seed=6),
    "t07_longest_instruction": T2I | dict(prompt="x" * (LONGEST - 2), seed=7),
    "t08_no_words": T2I | dict(prompt="", seed=8),
    "t09_bf16": T2I | dict(dtype="bf16", seed=9),
    "t10_one_step": T2I | dict(steps=1, seed=10),
    "u01_whole_picture": MMU | dict(codes=1024, length=32, steps=8, block=16),
    "u02_three_blocks": MMU,
    "u03_guided": MMU | dict(guidance=1.5, seed=3),
    "u04_noisy": MMU | dict(temperature=0.7, guidance=0.5, seed=4),
    "u05_random_remasking": MMU | dict(remasking="random", seed=5),
    "u06_one_block": MMU | dict(length=20, block=20, steps=7, seed=6),
    "u07_batch": MMU | dict(prompt=["what is it?", "  how many x?\n"], seed=7),
    "u08_no_picture": MMU | dict(codes=0, prompt=["how far is it?"], temperature=1.0, seed=8),
    "u09_bf16": MMU | dict(dtype="bf16", seed=9),
}
PICTURES = [(512, 512), (300, 200), (201, 640), (1023, 515), (37, 41), (640, 481)]


def reference(folder):
    """The modules that are run. The package is made by hand: its own start imports diffusers."""
    package = types.ModuleType("models")
    package.__path__ = [str(folder / "models")]
    sys.modules["models"] = package
    sys.path.insert(0, str(folder))
    from models import modeling_mmada
    from training.prompting_utils import UniversalPrompting

    return modeling_mmada, UniversalPrompting


@functools.cache
def weights():
    return {name: torch.from_numpy(array) for name, array in golden.model_weights("tiny-M")}


def model_of(code, dtype):
    config = golden.model_config("tiny-M") | {"init_device": "cpu"}
    config.pop("torch_dtype")
    settings = code.MMadaConfig(**config)
    settings.use_cache = False  # which transformers 5 drops
    model = code.MMadaModelLM(settings, init_params=False)
    model.load_state_dict(weights(), assign=True)
    return model.to(golden.DTYPES[dtype]).train(False)


def recorded(model, code, shaken=0.0):
    """What each call of the model saw, and each selection of image codes. ``shaken``: relative
    noise on the logits, to see whether a decision hangs on rounding."""
    seen = {"rows": [], "biases": [], "sampled": [], "masking": []}
    forward, multinomial = type(model).forward, torch.multinomial
    topk, noise = RELEASED["topk"], torch.Generator().manual_seed(99)

    def watched(self, ids, **others):
        seen["rows"].append(ids.clone())
        seen["biases"].append(others.get("attention_bias"))
        output = forward(self, ids, **others)
        if shaken:
            answer = output.logits[:, -60:]
            answer *= 1 + shaken * torch.randn(answer.shape, generator=noise)
        return output

    def sampled(*arguments, **others):
        seen["sampled"].append(multinomial(*arguments, **others))
        return seen["sampled"][-1]

    def masked(*arguments, **others):
        seen["masking"].append(topk(*arguments, **others))
        return seen["masking"][-1]

    model.forward = types.MethodType(watched, model)
    code.torch = types.SimpleNamespace(**vars(torch) | {"multinomial": sampled})
    code.mask_by_random_topk = masked
    return seen


RELEASED = {}


def run(case, model, code, prompting, shaken=0.0):
    """One case; the tensors of its file, and what its file says."""
    stream = torch.Generator().manual_seed(case["seed"] + 1000)
    seen = recorded(model, code, shaken)
    torch.manual_seed(case["seed"])
    generator = torch.Generator().manual_seed(case["seed"]) if case.get("generator") else None
    draw = draw_picture if case["task"] == "t2i" else write_text
    tensors = draw(case, model, prompting, stream, generator, seen)
    states = {"global": torch.get_rng_state()}
    states |= {"generator": generator.get_state()} if generator else {}
    sums = {n: hashlib.sha256(s.numpy().tobytes()).hexdigest() for n, s in states.items()}
    return tensors, {"random_state_sha256": sums, "model_calls": len(seen["rows"])}


def draw_picture(case, model, prompting, stream, generator, seen):
    codes = torch.randint(0, CODES, (1, case["codes"]), generator=stream)
    given = torch.rand(codes.shape, generator=stream) < case["given"]
    start = torch.where(given, codes + OFFSET, MASK)
    ids, mask = prompting(([case["prompt"]], start), "t2i_gen")
    other, other_mask = prompting(([""], start), "t2i_gen")
    call = dict(input_ids=ids.clone(), attention_mask=mask, generator=generator)
    if case["guidance"] > 0:
        call |= dict(uncond_input_ids=other, uncond_attention_mask=other_mask)
    result = model.t2i_generate(
        **call,
        temperature=case["temperature"],
        timesteps=case["steps"],
        guidance_scale=case["guidance"],
        seq_len=case["codes"],
        uni_prompting=prompting,
    )
    assert all(bias is not None for bias in seen["biases"])
    rows = torch.stack(seen["rows"])
    return {
        "row": ids[0][mask[0].bool()],
        "unconditional_row": other[0][other_mask[0].bool()],
        "start": start[0],
        "states": rows[:, 0, -case["codes"] - 1 : -1],
        "sampled": torch.stack(seen["sampled"])[..., 0],
        "masking": torch.stack(seen["masking"])[:, 0],
        "result": result[0],
    }


def write_text(case, model, prompting, stream, generator, seen):
    batch, tokenizer = len(case["prompt"]), prompting.text_tokenizer
    messages = [[{"role": "user", "content": question}] for question in case["prompt"]]
    chats = [tokenizer.apply_chat_template(m, tokenize=False) for m in messages]
    ids = torch.tensor([tokenizer(chat)["input_ids"] for chat in chats])
    codes = torch.randint(0, CODES, (batch, case["codes"]), generator=stream)
    if case["codes"]:
        ends = [prompting.sptids_dict[n].expand(batch, 1) for n in ("<|mmu|>", "<|soi|>")]
        eoi = prompting.sptids_dict["<|eoi|>"].expand(batch, 1)
        ids = torch.cat([*ends, codes + OFFSET, eoi, ids], dim=1)
    result = model.mmu_generate(
        ids,
        max_new_tokens=case["length"],
        steps=case["steps"],
        block_length=case["block"],
        temperature=case["temperature"],
        cfg_scale=case["guidance"],
        remasking=case["remasking"],
    )
    rows = torch.stack(seen["rows"])
    tensors = {"row": ids, "codes": codes, "states": rows[:, :batch, ids.shape[1] :]}
    tensors |= {"result": result[:, ids.shape[1] :]}
    if case["guidance"] > 0:
        tensors["unconditional_rows"] = rows[:, batch:]
    return tensors


def crops(folder):
    """Sizes and checksums of what the released code makes of pictures, but for the last step."""
    sys.path.insert(0, str(folder))
    from torchvision import transforms

    made = []
    for seed, size in enumerate(PICTURES):
        image = Image.fromarray(golden.picture(seed, *size))
        resized = transforms.Resize(512, interpolation=transforms.InterpolationMode.BICUBIC)(image)
        cropped = transforms.CenterCrop((512, 512))(resized)
        sums = hashlib.sha256(cropped.tobytes()).hexdigest()
        made.append({"seed": seed, "size": size, "sha256": sums})
    return made


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=list(CASES))
    args = parser.parse_args()
    torch.set_num_threads(1)
    code, prompting_class = reference(args.reference)
    RELEASED["topk"] = code.mask_by_random_topk
    tokenizer = PreTrainedTokenizerFast.from_pretrained(golden.checkpoint("tiny-M"))
    tokenizer.chat_template = TEMPLATE
    prompting = prompting_class(tokenizer, max_text_len=LONGEST, use_reserved_token=True)
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "crops.json").write_text(json.dumps(crops(args.reference), indent=1) + "\n")
    for name in args.only:
        case = CASES[name]
        model = model_of(code, case["dtype"])
        tensors, said = run(case, model, code, prompting)
        robust = None  # not tried
        if case["dtype"] == "fp32" and case["codes"] < 60:
            again = run(case, model_of(code, "fp32"), code, prompting, shaken=2e-6)[0]
            robust = all(torch.equal(tensors[key], again[key]) for key in tensors)
        content = {"case": case, "robust": robust, **said, "torch": torch.__version__}
        (OUT / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
        stored = {
            key: value.contiguous() if value.dtype == torch.bool else value.int().contiguous()
            for key, value in tensors.items()
        }
        save_file(stored, OUT / f"{name}.safetensors")
        print(name, "robust" if robust else robust, said["model_calls"], flush=True)


if __name__ == "__main__":
    main()
