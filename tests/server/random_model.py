"""Serves a tiny language model that nobody has trained, through llama.cpp's own OpenAI-compatible server.

    python random_model.py model.gguf

Runs in an environment of its own, with xllamacpp and gguf from PyPI; everything is made here, nothing is downloaded.
Prints the server's address in a line, and serves until standard input ends.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import gguf
import numpy as np

WIDTH, HEADS, LAYERS, INNER, CONTEXT = 32, 4, 2, 64, 2048
SPACE = "\u2581"
CHAT = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"


def vocabulary() -> list[tuple[str, gguf.TokenType]]:
    """Three marks, every byte, and yes and no in all their spellings: a model without knowledge, but with opinions."""
    marks = [("<unk>", gguf.TokenType.UNKNOWN), ("<s>", gguf.TokenType.CONTROL), ("</s>", gguf.TokenType.CONTROL)]
    every_byte = [(f"<0x{byte:02X}>", gguf.TokenType.BYTE) for byte in range(256)]
    letters = [(letter, gguf.TokenType.NORMAL) for letter in ("y", "e", "s", "n", "o", SPACE)]
    words = [
        (space + "".join(spelt), gguf.TokenType.NORMAL)
        for word in ("yes", "no")
        for spelt in itertools.product(*((letter, letter.upper()) for letter in word))
        for space in ("", SPACE)
    ]
    return [*marks, *every_byte, *letters, *words]


def write_model(path: Path, seed: int = 0) -> None:
    """A Llama of two layers with random weights; only what it can say is loud enough to be heard over single bytes."""
    draw, tokens = np.random.default_rng(seed), vocabulary()
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("random")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([text for text, _ in tokens])
    writer.add_token_scores([-float(i) for i in range(len(tokens))])
    writer.add_token_types([kind for _, kind in tokens])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(CHAT)

    def random(name: str, rows: int, columns: int, scale: float = WIDTH**-0.5) -> None:
        writer.add_tensor(name, draw.normal(0.0, scale, (rows, columns)).astype(np.float32))

    random("token_embd.weight", len(tokens), WIDTH, 1.0)
    for layer in range(LAYERS):
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(WIDTH, np.float32))
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            random(f"blk.{layer}.{name}.weight", WIDTH, WIDTH, 2.0 * WIDTH**-0.5)
        random(f"blk.{layer}.ffn_gate.weight", INNER, WIDTH)
        random(f"blk.{layer}.ffn_up.weight", INNER, WIDTH)
        random(f"blk.{layer}.ffn_down.weight", WIDTH, INNER)
    writer.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    loud = np.array([3.0 if kind == gguf.TokenType.NORMAL and len(text) > 1 else 0.1 for text, kind in tokens])
    said = draw.normal(0.0, WIDTH**-0.5, (len(tokens), WIDTH)) * loud[:, None]
    writer.add_tensor("output.weight", said.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def serve(path: Path) -> None:
    """Answers on a free port of the loopback interface until standard input ends."""
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = str(path)
    settings.hostnames = ["127.0.0.1"]
    settings.port = 0
    settings.n_ctx = 4 * CONTEXT
    settings.n_parallel = 4
    settings.n_gpu_layers = 0
    settings.cpuparams.n_threads = 1
    settings.warmup = False
    settings.use_jinja = True
    server = xllamacpp.Server(settings)
    print(f"xllamacpp {xllamacpp.__version__} at {server.listening_address}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    model = Path(sys.argv[1])
    write_model(model)
    serve(model)
