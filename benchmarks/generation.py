"""The cost of generation, compared with `transformers.generate` on the same weights.

    python benchmarks/generation.py

A Llama of random weights continues one prompt 32 times, without EOS, so that all continuations have
the same length; temperature 0.5, float32. Each side runs once to warm up (ours compiles), then they
take turns, so that other load on the machine affects both. Prints wall-clock and CPU seconds and
tokens a second of each run, the ratios of the best, and the bytes of the prompt's keys and values.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch
import transformers

from calrec_jax.checkpoints import hf_io, streamed
from calrec_jax.decode.sample import Sampler
from calrec_jax.decode.sampling import SamplingConfig
from calrec_jax.models.decoder import Decoder, for_generation
from calrec_jax.models.params import Params
from calrec_jax.parallel.mesh import MeshConfig, make_mesh

TEMPERATURE = 0.5
NO_TOKEN = -1  # an EOS that is never generated


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawTextHelpFormatter
    parser.add_argument("--d_model", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, default=32_768)
    parser.add_argument("--prompt", type=int, default=384, help="tokens, BOS included")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--new_tokens", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    prompt = np.random.default_rng(0).integers(3, args.vocabulary, args.prompt).astype(np.int32)
    model = make_model(args)
    weights = imported(model)
    sides = {
        "calrec_jax": calrec_generate(*weights, prompt, args),
        "transformers": transformers_generate(model, prompt, args),
    }
    for generate in sides.values():
        generate()
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(args.rounds):
        for name, generate in sides.items():
            seconds[name].append(measured(generate))
            wall, cpu = seconds[name][-1]
            rate = args.samples * args.new_tokens / wall
            print(f"{name}: {wall:.2f} s, {cpu:.2f} s of CPU, {rate:,.0f} tokens/s", flush=True)
    for i, kind in enumerate(("wall", "CPU")):
        best_calrec, best_transformers = (min(t[i] for t in seconds[name]) for name in sides)
        ratio = best_transformers / best_calrec
        print(f"{kind} time of transformers / calrec_jax, best of each: {ratio:.2f}")
    print_cache(*weights, prompt, args.samples)


def make_model(args: argparse.Namespace) -> transformers.LlamaForCausalLM:
    """A Llama of random weights, with heads of width 64 and as many key/value heads."""
    config = transformers.LlamaConfig(
        vocab_size=args.vocabulary,
        hidden_size=args.d_model,
        intermediate_size=args.d_model * 8 // 3 // 32 * 32,
        num_hidden_layers=args.layers,
        num_attention_heads=args.d_model // 64,
        num_key_value_heads=args.d_model // 64,
        max_position_embeddings=args.prompt + args.new_tokens,
        attn_implementation="sdpa",
    )
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config).eval()


def imported(model: transformers.LlamaForCausalLM) -> tuple[Decoder, Params]:
    """Our decoder of the same function, and its parameters, read as `calrec convert` reads them."""
    with tempfile.TemporaryDirectory() as folder:
        hf_dir, checkpoint_dir = pathlib.Path(folder) / "hf", pathlib.Path(folder) / "checkpoints"
        model.save_pretrained(hf_dir)
        weights = hf_io.read(hf_dir)
        hf_io.import_weights(weights, checkpoint_dir)
        tree: dict[str, Any] = {}
        for name, store in streamed.open_params(checkpoint_dir, 0).items():
            *parents, leaf = name.split("/")
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[leaf] = jax.numpy.asarray(store.read().result())
    return Decoder(dataclasses.replace(weights.config, dtype="float32")), tree


def calrec_generate(
    decoder: Decoder, params: Params, prompt: np.ndarray, args: argparse.Namespace
) -> Callable[[], None]:
    """A function that generates all continuations once, with calrec_jax."""
    mesh_config = MeshConfig(1, 1)
    sampler = Sampler(
        decoder,
        params,
        SamplingConfig(args.samples, TEMPERATURE, args.new_tokens),
        eos_id=NO_TOKEN,
        bos_id=int(prompt[0]),
        max_prompt_tokens=len(prompt) - 1,
        mesh=make_mesh(mesh_config, jax.devices()[:1]),
        mesh_config=mesh_config,
    )

    def generate() -> None:
        samples = sampler([prompt[1:]], [0])
        assert (samples.lengths == args.new_tokens).all()

    return generate


def transformers_generate(
    model: transformers.LlamaForCausalLM, prompt: np.ndarray, args: argparse.Namespace
) -> Callable[[], None]:
    """A function that generates all continuations once, with transformers."""
    tokens = torch.tensor(prompt[None].astype(np.int64))
    model.generation_config.eos_token_id = None

    def generate() -> None:
        with torch.no_grad():
            out = model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                do_sample=True,
                temperature=TEMPERATURE,
                top_k=0,
                num_return_sequences=args.samples,
                max_new_tokens=args.new_tokens,
                pad_token_id=0,
            )
        assert out.shape == (args.samples, len(prompt) + args.new_tokens)

    return generate


def measured(run: Callable[[], None]) -> tuple[float, float]:
    """(wall-clock, CPU) seconds of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def print_cache(decoder: Decoder, params: Params, prompt: np.ndarray, samples: int) -> None:
    """Prints the bytes of the prompt's keys and values, held once and for each continuation."""
    decoder, params = for_generation(decoder, params)
    mask = np.ones((1, len(prompt)), bool)
    _, prefix = jax.eval_shape(
        lambda: decoder.apply({"params": params}, prompt[None], mask, method="prefill")
    )
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(prefix.layers))
    print(f"keys and values of the prompt: {held:,} bytes, and {samples * held:,} if tiled")


if __name__ == "__main__":
    main()
