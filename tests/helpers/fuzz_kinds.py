"""The kinds of files that are fuzzed: each is a function of (folder, rng, count) that yields (what it is, its reader).

Before a case is yielded its file lies mutated in the folder; the reader is what users call.
"""

import io
import json
import pickle
import re
import struct
from pathlib import Path

import jax
import numpy as np
from helpers.fuzz_configs import MODELS, scheduler_config
from helpers.fuzzing import files_of, mutated_bytes, mutated_json
from helpers.tiny_model import halves, tensors
from PIL import Image
from safetensors.numpy import save, save_file

import jaxdiff as jd
from jaxdiff import data, text
from jaxdiff.interop.formats.files import open_tensors
from jaxdiff.interop.formats.legacy_torch import read_legacy
from jaxdiff.interop.models.edm import edm2_config, edm_config
from jaxdiff.interop.models.openai import openai_config
from jaxdiff.interop.models.single_file import read_single
from jaxdiff.interop.schedulers import KINDS as SCHEDULERS
from jaxdiff.interop.sources import read_fields
from jaxdiff.text_to_image.index import read_index

LINES = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[2] / "docs" / "export.md").read_text(), re.S)[0]


def read_all(path):
    for tensor in open_tensors(path).values():
        tensor[()]


def safetensors(folder, rng, count):
    path, whole = folder / "x.safetensors", save(tensors())
    yield from files_of(whole, path, lambda: read_all(path), rng, count // 2)
    for i in range(count - count // 2):
        length = struct.unpack("<Q", whole[:8])[0]
        header = json.dumps(mutated_json(json.loads(whole[8 : 8 + length]), rng)).encode()
        path.write_bytes(struct.pack("<Q", len(header)) + header + whole[8 + length :])
        yield f"header #{i}", lambda: read_all(path)


def index(folder, rng, count):
    parts = halves(tensors())
    for name, held in parts.items():
        save_file(held, folder / name)
    whole = {"metadata": {}, "weight_map": {key: name for name, held in parts.items() for key in held}}
    path = folder / "x.safetensors.index.json"
    odd = ["../x.safetensors", "/etc/x.safetensors", "a/" * 3000 + ".safetensors", "n" * 300 + ".safetensors",
           "\0.safetensors", ".safetensors", "..safetensors", "\ud800.safetensors"]  # fmt: skip
    for i in range(count):
        changed = mutated_json(whole, rng)
        if i % 3 == 0:
            changed = {"weight_map": whole["weight_map"] | {"gain": odd[i // 3 % len(odd)]}}
        path.write_text(json.dumps(changed))
        yield f"index #{i}", lambda: read_all(path)
    path.unlink()


def models(folder, rng, count):
    """Fields of configs, read from their file; the network's shapes are another matter."""
    path = folder / "config.json"
    kinds = list(MODELS)
    for i in range(count):
        kind = kinds[i % len(kinds)]
        path.write_text(json.dumps(mutated_json(MODELS[kind], rng)))
        yield f"{kind} #{i} {path.read_text()[:600]}", lambda: jd.interop.architecture(read_fields(folder))


def originals(folder, rng, count):
    """What the tensors of EDM's, OpenAI's and single files' networks say, of any shapes."""
    readers = [lambda t: read_single(t) and [part.read({}) for part in read_single(t).parts.values()],
               lambda t: edm_config(t, {}), lambda t: edm2_config(t, {}),
               lambda t: openai_config(t, {"num_heads": 1})]  # fmt: skip
    names, path = list(NAMES), folder / "x.safetensors"
    for i in range(count):
        held = {}
        for name in rng.permutation(names)[: int(rng.integers(1, len(names) + 1))]:
            shape = tuple(int(rng.choice([0, 1, 2, 8, 16])) for _ in range(rng.integers(0, 5)))
            shape = (*shape, 10**12) if 0 in shape and rng.random() < 0.5 else shape  # of no elements
            held[str(name)] = np.zeros(shape[::-1], np.float32)
        path.write_bytes(save(held))
        yield f"original #{i} {sorted(held)}", lambda read=readers[i % 4]: read(open_tensors(path))


NAMES = [
    "double_blocks.0.img_attn.qkv.weight", "joint_blocks.0.x_block.attn.qkv.weight", "x_embedder.proj.weight",
    "joint_blocks.0.x_block.attn.ln_q.weight", "img_in.weight", "txt_in.weight", "vector_in.in_layer.weight",
    "middle_block.1.transformer_blocks.0.attn2.to_k.weight", "label_emb.0.0.weight", "input_blocks.0.0.weight",
    "input_blocks.1.0.out_layers.3.weight", "output_blocks.0.0.out_layers.3.weight", "out.2.weight",
    "middle_block.1.proj_in.weight", "first_stage_model.encoder.conv_in.weight", "global_step",
    "first_stage_model.decoder.mid.block_1.conv1.weight", "time_embed.0.weight", "label_emb.weight",
    "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight", "input_blocks.00.0.weight",
    "cond_stage_model.model.token_embedding.weight", "model.enc.8x8_conv.weight", "model.enc.8x8_block0.conv1.weight",
    "model.enc.4x4_block0.conv1.weight", "model.map_layer0.weight", "model.map_layer1.weight", "model.out_norm.weight",
    "model.out_conv.weight", "model.dec.8x8_aux_conv.weight", "unet.enc.8x8_block0.conv_res1.weight",
    "unet.emb_noise.weight", "unet.enc.8x8_conv.weight", "model.enc.99999999999x99999999999_block9.x",
    "model.enc.4x4_down.resample_filter", "cond_stage_model.model.transformer.resblocks.99999999999999999999.x",
    "encoder.down.0.block.0.conv1.weight", "encoder.down.99999999999.x", "output_blocks.99999999999.0.x",
    "text_encoders.t5xxl.transformer.shared.weight", "double_blocks.99999999999.x", "joint_blocks.99999999999.x",
]  # fmt: skip


def schedulers(folder, rng, count):
    path, kinds = folder / "scheduler_config.json", list(SCHEDULERS)
    for i in range(count):
        kind = kinds[i % len(kinds)]
        path.write_text(json.dumps(mutated_json(scheduler_config(kind), rng)))
        yield f"{kind} #{i}", lambda: _scheduled(folder)


def _scheduled(folder):
    made = jd.interop.scheduler(folder)
    made.sampling.grid(4), made.sampling.solver(4)


def tokenizers(folder, rng, count):
    from text.test_tokenizer import BERT, CLIP

    vocab = {token: i for i, token in enumerate(CLIP)}
    config = {
        "model_max_length": 8, "added_tokens_decoder": {"7": {"content": "<|startoftext|>", "special": True}},
        "pad_token": {"content": "<|endoftext|>", "lstrip": False}, "padding_side": "right", "truncation_side": "right",
        "do_lower_case": True, "tokenize_chinese_chars": True, "strip_accents": None,
    }  # fmt: skip
    fast = _fast(vocab)
    files = {
        "vocab.json": json.dumps(vocab), "merges.txt": "#version: 0.2\na b</w>\n", "vocab.txt": "\n".join(BERT) + "\n",
        "tokenizer.json": fast, "tokenizer_config.json": json.dumps(config),
        "special_tokens_map.json": json.dumps({"pad_token": "!"}), "added_tokens.json": json.dumps({"<new>": 9}),
    }  # fmt: skip
    sets = [["vocab.json", "merges.txt"], ["vocab.txt"], ["tokenizer.json"]]
    for i in range(count):
        own = [*sets[i % 3], "tokenizer_config.json"] + ["special_tokens_map.json", "added_tokens.json"] * (i % 2)
        for name in files:
            (folder / name).unlink(missing_ok=True)
        for name in own:
            (folder / name).write_text(files[name])
        if i % 2:
            (folder / "tokenizer_config.json").write_text('{"model_max_length": 8}')
        name = own[rng.integers(len(own))]
        if name.endswith(".json") and rng.random() < 0.8:
            (folder / name).write_text(json.dumps(mutated_json(json.loads((folder / name).read_text()), rng)))
        else:
            (folder / name).write_bytes(mutated_bytes((folder / name).read_bytes(), rng))
        yield f"{own} {name} #{i}", lambda: text.tokenizer(folder)(["ab a!"])


def _fast(vocab):
    from tokenizers import Tokenizer, models

    made = Tokenizer(models.BPE(vocab, [("a", "b</w>")], unk_token="!", end_of_word_suffix="</w>"))
    made.add_special_tokens(["<|endoftext|>"])
    made.enable_padding(pad_id=8, pad_token="<|endoftext|>")
    return made.to_str()


def pipelines(folder, rng, count):
    """model_index.json of a folder whose parts are named, and whose configs say little."""
    for part, kind in (("unet", "UNet2DConditionModel"), ("vae", "AutoencoderKL"), ("text_encoder", "CLIPTextModel")):
        (folder / part).mkdir(exist_ok=True)
        (folder / part / "config.json").write_text(json.dumps(MODELS[kind]))
    (folder / "tokenizer").mkdir(exist_ok=True)
    whole = {
        "_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["a", "b"],
        "text_encoder": ["transformers", "CLIPTextModel"], "safety_checker": [None, None], "_diffusers_version": "0.1",
        "force_zeros_for_empty_prompt": True,
    }  # fmt: skip
    for i in range(count):
        changed = mutated_json(whole, rng)
        if i % 2:
            changed["_class_name"] = "StableDiffusionXLPipeline"
        (folder / "model_index.json").write_text(json.dumps(changed))
        yield f"pipeline #{i}", lambda: read_index(folder)


def lora(folder, rng, count):
    config = MODELS["UNet2DModel"]
    built = jd.interop.architecture(config)
    unet = jd.interop.Pretrained(built.apply, _SHAPES.setdefault("unet", jax.eval_shape(built.init, jax.random.key(0))),
                             config)  # fmt: skip
    stem, path = "unet.down_blocks.1.attentions.0.to_q", folder / "x.safetensors"
    small = lambda *shape: np.ones(shape, np.float32)  # noqa: E731
    pair = {"lora_A.weight": small(2, 16), "lora_B.weight": small(16, 2)}
    kinds = [
        pair,
        {"hada_w1_a": small(16, 2), "hada_w1_b": small(2, 16), "hada_w2_a": small(16, 2), "hada_w2_b": small(2, 16)},
        {"lokr_w1": small(2, 2), "lokr_w2": small(8, 8), "alpha": small()},
        pair | {"alpha": small(), "lora_mid.weight": small(2, 2)},
    ]  # fmt: skip
    settings = {"r": 2, "lora_alpha": 4, "rank_pattern": {"to_q": 2}, "alpha_pattern": {"to_q": 3}, "use_rslora": True}
    for i in range(count):
        held = {f"{stem}.{name}": array for name, array in kinds[i % 4].items()}
        if i % 3 == 0:
            name = list(held)[rng.integers(len(held))]
            shape = tuple(int(rng.choice([0, 1, 2, 3, 16, 200])) for _ in range(rng.integers(0, 4)))
            held[name] = np.zeros(shape, np.float32)
        told = json.dumps(mutated_json({f"unet.{k}": v for k, v in settings.items()}, rng))
        if i % 5 == 0:
            told = mutated_bytes(told.encode(), rng).decode("utf-8", "replace")
        whole = save(held, {"lora_adapter_metadata": told})
        path.write_bytes(mutated_bytes(whole, rng) if i % 3 == 1 else whole)
        yield f"lora #{i} {told[:300]}", lambda: jd.interop.load_lora(path, {"unet": unet})


_SHAPES: dict = {}


def legacy(folder, rng, count):
    from interop.formats.test_legacy_torch import tensor, write

    path = folder / "state.pth"
    write(path, tensor((2, 3), (3, 1)))
    yield from files_of(path.read_bytes(), path, lambda: read_legacy(path), rng, count // 2)
    for i in range(count - count // 2):
        size = tuple(int(rng.choice([0, 1, 2, 6, 10**6, 2**62, -1])) for _ in range(rng.integers(0, 5)))
        stride = tuple(int(rng.choice([0, 1, 2, 3, 2**62])) for _ in size)
        write(path, tensor(size, stride, int(rng.integers(0, 7))))
        yield f"view {size} {stride} #{i}", lambda: read_legacy(path)


def bombs(folder, rng, count):
    """Programs for the unpickler that make much of little."""
    from interop.formats.test_legacy_torch import OPEN

    path = folder / "state.pth"
    double = b"(lp0\n" + b"".join(b"(lp%d\ng%d\nag%d\na" % (i + 1, i, i) for i in range(40)) + b"."
    programs = [
        double,
        b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.",  # BINBYTES8 of a terabyte
        b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"x.",  # BINUNICODE8
        b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b".",  # BYTEARRAY8
        b"\x80\x04N\x72" + struct.pack("<I", 2**32 - 1) + b".",  # LONG_BINPUT: a memo of 2^32
        b"\x80\x04" + b"(" * 20_000 + b"t" * 20_000 + b".",
        b"\x80\x02" + b"ccollections\nOrderedDict\n" + b"(tR" + b"2" * 20_000 + b".",
        b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"N.",  # FRAME
        b"\x8b" + struct.pack("<i", 2**31 - 1) + b".",  # LONG4
        b"]" + b"]a" * 300 + b".",
        b"(dVa\n(dVb\nN" + b"s" * 5 + b".",
        b"I" + b"9" * 10_000 + b"\n.",
        b"L" + b"9" * 100_000 + b"L\n.",
        b"ccollections\nOrderedDict\n(I%d\ntR." % 2**62,
        b"ccollections\nOrderedDict\n)\x81N}Vpopitem\nNsb.",
    ]
    system = pickle.dumps({"little_endian": True}, 2)
    for i in range(count):
        program = programs[i % len(programs)]
        program = program if i < 2 * len(programs) else mutated_bytes(program, rng)
        place = (i // len(programs)) % 2
        path.write_bytes((OPEN + system if place else b"") + program)
        yield f"bomb {i % len(programs)} #{i}", lambda: read_legacy(path)


def npz(folder, rng, count):
    path = folder / "x.npz"
    arrays = {"hint": np.zeros((4, 4, 4, 3), np.uint8), "label": np.arange(4)}
    images = data.ArraySource(np.zeros((4, 4, 4, 3), np.uint8), np.arange(4), 4)
    plain, packed = io.BytesIO(), io.BytesIO()
    np.savez(plain, **arrays)
    np.savez_compressed(packed, **arrays)
    readers = lambda: data.load_embeddings(path), lambda: data.open_hints(str(path), images)
    for i in range(count):
        path.write_bytes(mutated_bytes((plain, packed)[i % 2].getvalue(), rng))
        yield f"npz #{i}", readers[i // 2 % 2]


def shards(folder, rng, count):
    path, whole = folder / "0.npz", io.BytesIO()
    example = {"mean": jax.ShapeDtypeStruct((2, 2), np.float32), "label": jax.ShapeDtypeStruct((), np.int32)}
    np.savez(whole, mean=np.arange(40, dtype=np.float32).reshape(10, 2, 2), label=np.arange(10))
    for i in range(count):
        path.write_bytes(mutated_bytes(whole.getvalue(), rng))
        yield f"shard #{i}", lambda: data.NpzShards(folder, example)[3]


def images(folder, rng, count):
    forms = ["png", "jpg", "gif", "bmp", "tiff", "webp"]
    pixels = Image.fromarray(np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3))
    for i in range(count):
        for old in folder.iterdir():
            old.unlink()
        path, whole = folder / f"a.{forms[i % 6]}", io.BytesIO()
        pixels.save(whole, {"jpg": "jpeg"}.get(forms[i % 6], forms[i % 6]))
        path.write_bytes(mutated_bytes(whole.getvalue(), rng))
        yield f"{path.name} #{i}", lambda: data.open_dataset(f"folder:{folder}", size=8)[0]


def exports(folder, rng, count):
    """The documentation's lines up to the call; mutations that leave the file as it is are left out."""
    from cli.test_export import PARAMS, tiny

    from jaxdiff import export

    path = folder / "sampler.jaxdiff"
    with export.for_export("float32"):
        export.write_program(path, export.export_sampler(tiny(), PARAMS, platforms=("cpu",)))
    whole, lines = path.read_bytes(), LINES.split("x = jax.export")[0] + "jax.export.deserialize(bytearray(code))"
    lines = lines.replace("sampler.jaxdiff", str(path))
    exec(lines, {})
    for name, read in files_of(whole, path, lambda: exec(lines, {}), rng, count):
        if path.read_bytes() != whole:
            yield name, read


KINDS = {
    "safetensors": safetensors, "index": index, "models": models, "originals": originals, "schedulers": schedulers,
    "tokenizers": tokenizers, "pipelines": pipelines, "lora": lora, "legacy": legacy, "bombs": bombs, "npz": npz,
    "shards": shards, "images": images, "exports": exports,
}  # fmt: skip
