"""The commands that use a model: generate, chat, quantize, merge, evaluate; what each is given, and what it does."""

import argparse
import contextlib
import math
import sys
import warnings
from pathlib import Path

from minilora.errors import ConfigError

WIDE = 100  # columns of a terminal that holds two answers beside each other


def declare(add):
    """The commands and their options. add: makes a subcommand, see cli.py."""

    def add_sampling(sub):
        sub.add_argument("--temperature", type=float, default=0.0, help="0 (default): the likeliest token")
        sub.add_argument("--top-k", type=int)
        sub.add_argument("--top-p", type=float)
        sub.add_argument("--seed", type=int)

    models = "embedded, smollm2-135m, a GGUF file or a Hugging Face folder"
    sub = add("generate", generate, "continue a text")
    sub.add_argument("model", help=models)
    sub.add_argument("prompt")
    sub.add_argument("--adapter", help="folder of a LoRA adapter to apply")
    sub.add_argument("--max-new-tokens", type=_count, default=64)
    add_sampling(sub)
    sub.add_argument("--chat", action="store_true", help="put the prompt into the model's chat template")

    sub = add("chat", chat, "talk with a model, its answers with and without an adapter side by side")
    sub.add_argument("model", help=models)
    sub.add_argument("--adapter", help="folder of a LoRA adapter")
    sub.add_argument("--max-new-tokens", type=_count, default=128, help="of an answer (default 128)")
    add_sampling(sub)
    sub.add_argument("--template", metavar="TEXT", help=r"in place of the model's chat template: a prompt with {} "
                     r"where what is typed goes, such as '{}\n>>> '; each line is then on its own")  # fmt: skip

    sub = add("quantize", quantize, "write a model in 4 bits, for us and for transformers")
    sub.add_argument("model", help=models)
    sub.add_argument("output", help="folder to write")
    sub.add_argument("--code", choices=["nf4", "fp4"], default="nf4")
    sub.add_argument("--blocksize", type=int, choices=[2**i for i in range(5, 13)], default=64,
                     help="weights that share a scale (default 64)")  # fmt: skip
    sub.add_argument("--no-double-quant", dest="double_quant", action="store_false", help="scales stay float32")
    sub.add_argument("--overwrite", action="store_true", help="write into a folder that is not empty")

    sub = add("merge", merge, "write a model with an adapter added to its weights")
    sub.add_argument("model", help=models)
    sub.add_argument("--adapter", required=True, help="folder of a LoRA adapter")
    sub.add_argument("--output", required=True, help="folder to write")
    sub.add_argument("--requantize", action="store_true",
                     help="round to the 4-bit base's code again, and say what survives of the adapter")  # fmt: skip
    sub.add_argument("--overwrite", action="store_true", help="write into a folder that is not empty")

    sub = add("evaluate", evaluate, "loss, perplexity and exact match; of generated answers ROUGE too")
    sub.add_argument("model", help=models)
    sub.add_argument("--adapter", help="folder of a LoRA adapter to apply")
    what = sub.add_mutually_exclusive_group(required=True)
    what.add_argument("--task", help="the held-out examples of header_json or docstring_json")
    what.add_argument("--dataset", metavar="FILE", help="a .jsonl, .json, .csv or .txt file")
    sub.add_argument("--type", help="what the file's rows are: alpaca, squad_v2, chat_template, completion")
    sub.add_argument("--limit", type=_count, metavar="N", help="the first N examples only")
    sub.add_argument("--generate", action="store_true", help="also let the model write answers, and score them")
    sub.add_argument("--max-new-tokens", type=_count, help="of an answer (default: as the longest reference)")
    sub.add_argument("--batch-size", type=_count, default=16)
    sub.add_argument("--json", metavar="FILE", help="also write the figures")


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def say(line: str):
    print(line, flush=True)


def load(args):
    """The model of the command, in eval mode, with its adapter if one is given; and its tokenizer."""
    from minilora import PeftModel, load_model
    from minilora.lora.files import load_adapter
    from minilora.lora.fingerprint import stored_as

    model, tokenizer = load_model(args.model)
    if not args.adapter:
        return model, tokenizer
    peft = PeftModel.from_pretrained(model, args.adapter).eval()
    trained_on = load_adapter(args.adapter)[2]
    if trained_on and stored_as(trained_on) != stored_as(peft.fingerprint):
        ours, theirs = stored_as(peft.fingerprint), stored_as(trained_on)
        warnings.warn(
            f"the adapter was trained beside {theirs} weights, and these are {ours}: together they are not quite the "
            "model that was trained (minilora quantize writes a 4-bit base)",
            stacklevel=2,
        )
    return peft, tokenizer


def _needs(tokenizer, args):
    if tokenizer is None:
        raise ConfigError(f"{args.model} has no tokenizer.json, without which text cannot be read")


def generate(args):
    from minilora import generate

    model, tokenizer = load(args)
    prompt = args.prompt
    if args.chat:
        _needs(tokenizer, args)
        prompt = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True)
    generate(
        model, tokenizer, prompt, args.max_new_tokens, args.temperature, args.top_k, args.top_p, args.seed,
        stream=lambda piece: print(piece, end="", flush=True), parse_special=args.chat,
    )  # fmt: skip
    print()


def quantize(args):
    from minilora import load_model, quantize_model
    from minilora.models.checkpoint import save_folder
    from minilora.train.output import prepare_output_dir

    model, tokenizer = load_model(args.model)
    before = model.memory_footprint()
    quantize_model(model, args.code, args.blocksize, args.double_quant)
    prepare_output_dir(args.output, args.overwrite)
    save_folder(model, tokenizer, args.output)
    layers = model.quantized().values()
    weights, size = sum(q.size for q in layers), sum(q.nbytes for q in layers)
    say(f"{len(layers)} linear layers, {weights:,} weights: {args.code} in {8 * size / weights:.4g} bits a weight, "
        "constants included")  # fmt: skip
    say(f"{before / 1e6:.2f} MB as float32, {model.memory_footprint() / 1e6:.2f} MB now; the rest stays float32")
    say(f"wrote {args.output}/")
    if cut := sorted({q.shape[1] for q in layers if q.shape[1] % args.blocksize}):
        smaller = math.gcd(args.blocksize, *cut)
        hint = f"; --blocksize {smaller} avoids it" if smaller >= 32 else ""
        warnings.warn(
            f"rows of {', '.join(map(str, cut))} weights are not whole blocks of {args.blocksize}: that is right here "
            f"and on a GPU, but on a CPU bitsandbytes reads such layers wrongly (docs/errata.md, 23){hint}",
            stacklevel=1,
        )


def merge(args):
    from minilora.lora.merge import overall
    from minilora.models.checkpoint import save_folder
    from minilora.train.output import prepare_output_dir

    model, tokenizer = load(args)
    layers, quantized = model.adapters(), bool(model.quantized())
    if args.requantize and not quantized:
        raise ConfigError("--requantize rounds the sum to the base's 4-bit code again, and this base is float; merge "
                          "without it, then minilora quantize what that wrote")  # fmt: skip
    prepare_output_dir(args.output, args.overwrite)
    merged = model.merge_and_unload(requantize=args.requantize)
    save_folder(merged, tokenizer, args.output)
    how = "rounded to their 4 bits again" if args.requantize else "dequantized" if quantized else "float as before"
    say(f"merged the adapter into {len(layers)} layers, {how}")
    if survived := merged.merge_survival:
        say(f"what survived of it: {overall(list(survived.values()))}. Least of all:")
        for path, part in sorted(survived.items(), key=lambda item: item[1].gain)[:3]:
            say(f"  {path}: {part}")
    say(f"{merged.memory_footprint() / 1e6:.2f} MB; wrote {args.output}/")


def evaluate(args):
    import json

    from minilora.files import atomic_write
    from minilora.train import questions
    from minilora.train.evaluate import evaluate, evaluate_answers
    from minilora.train.squad import squad

    if args.dataset and not args.type:
        args.usage("--dataset needs --type, which says what its rows are")
    if args.json and not Path(args.json).parent.is_dir():
        raise ConfigError(f"--json {args.json}: there is no folder {Path(args.json).parent}")
    model, tokenizer = load(args)
    _needs(tokenizer, args)
    room = model.config.max_position_embeddings
    if args.task:
        asked = questions.from_task(args.task, tokenizer, room, args.limit)
    else:
        asked = questions.from_file(args.dataset, args.type, tokenizer, room, args.limit)
    scores = evaluate(model, asked.examples, args.batch_size)
    figures = {"model": args.model, "adapter": args.adapter, "source": asked.source, "examples": len(asked.examples),
               "left_out": asked.left_out, **scores}  # fmt: skip
    say(f"{asked.source}: {len(asked.examples)} examples, {scores['tokens']:,} targets"
        + f"; {asked.left_out} more are longer than {room} tokens and left out" * bool(asked.left_out))  # fmt: skip
    for name, words in (("loss", "nats a target"), ("perplexity", ""), ("exact_match", "of examples, every target")):
        say(f"  {name:<12} {scores[name]:<8.4g} {words}".rstrip())
    if args.generate:
        prompts, references, longest = asked.answerable(tokenizer, room, args.max_new_tokens)
        scores = evaluate_answers(model, tokenizer, prompts, references, longest, args.batch_size, asked.template)
        answers = scores.pop("answers")
        if args.type == "squad_v2":
            scores |= squad(answers, references)
        figures["generated"] = {"examples": len(prompts), "max_new_tokens": longest, **scores}
        say(f"generated: {len(prompts)} answers of at most {longest} tokens")
        for name, score in scores.items():
            say(f"  {name:<12} {score:.4g}")
    if args.json:
        atomic_write(args.json, json.dumps(figures, indent=2) + "\n")


def chat(args):
    import shutil

    from minilora.chat import COMMANDS, chat

    model, tokenizer = load(args)
    typed = sys.stdin.isatty()
    with contextlib.suppress(ImportError):  # input() then edits its line and remembers the ones before
        import readline  # noqa: F401
    width = shutil.get_terminal_size().columns if typed and sys.stdout.isatty() else 0
    if typed:
        say(COMMANDS)
    template = args.template and args.template.replace("\\n", "\n")
    sampling = {name: getattr(args, name) for name in ("temperature", "top_k", "top_p", "seed")}

    def lines():
        while True:
            try:
                yield input("> " if typed else "")
            except EOFError:
                return

    try:
        chat(model, tokenizer, lines(), lambda text: print(text, end="", flush=True), args.max_new_tokens, template,
             width if width >= WIDE and args.adapter else None, **sampling)  # fmt: skip
    except KeyboardInterrupt:
        print()
