"""The command line: each subcommand parses its options and calls one function.

Exit code 0; 1 when the run failed; 2 for wrong usage. Errors are a line or two on stderr (--debug shows the traceback).
"""

import argparse
import sys
import warnings

import minilora
from minilora import commands
from minilora.errors import ConfigError, MiniloraError
from minilora.experiments import EXPERIMENTS


def main(argv: list[str] | None = None) -> int:
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    if rest and args.name != "train":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    args.keys = rest
    if not args.debug:
        warnings.showwarning = lambda message, *_: print(f"minilora {args.name}: warning: {message}", file=sys.stderr)
    try:
        return args.command(args) or 0
    except MiniloraError as error:
        if args.debug:
            raise
        print(f"minilora {args.name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"minilora {args.name}: interrupted", file=sys.stderr)
        return 1
    except MemoryError:
        print(
            f"minilora {args.name}: out of memory; a smaller micro_batch_size or sequence_len needs less",
            file=sys.stderr,
        )
        return 1
    except BrokenPipeError:
        return 1
    except OSError as error:
        if args.debug:
            raise
        print(f"minilora {args.name}: {error.strerror or error}: {error.filename or ''}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="minilora", description=minilora.__doc__)
    parser.add_argument("--version", action="version", version=f"minilora {minilora.__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command, help: str) -> argparse.ArgumentParser:
        sub = subparsers.add_parser(name, help=help, description=help)
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        sub.set_defaults(command=command, name=name, usage=sub.error)
        return sub

    demo = add("demo", _demo, "QLoRA on the embedded model, offline, in under a minute")
    demo.add_argument("--output-dir", help="where to write (default: minilora-demo; replaced if a demo wrote it)")
    demo.add_argument("--seed", type=int, help="of the adapters and the order of batches (default 0)")
    demo.add_argument("--max-steps", type=int, help="updates (default: the recipe's 500)")
    demo.add_argument("--compare", action="store_true", help="also rerun the variants that the table quotes")

    train = add("train", _train, "run a recipe by name, or a YAML file; any key of it can be given as --key value")
    train.add_argument("recipe", help="demo, smollm2-qlora, smollm2-lora, pretrain-stdlib or a .yml file")
    train.add_argument("--output-dir", help="where to write")
    train.add_argument("--seed", type=int)
    train.add_argument("--max-steps", type=int)
    train.add_argument("--overwrite", action="store_true", help="write into an output folder that is not empty")
    train.add_argument("--show-batch", action="store_true", help="print the first batch with its mask, and stop")
    train.add_argument("--dry-run", action="store_true", help="print the plan and the memory it needs, and stop")

    dataset = add("dataset", _dataset, "write a training file made from this Python's own library and help pages")
    dataset.add_argument("name", help="docstrings, function-json or topics-squad")
    dataset.add_argument("split", help="train, validation or held-out")
    dataset.add_argument("output", help="file to write: .jsonl, topics-squad .json")

    fetch = add("fetch", _fetch, "download a model into the cache, checksum verified")
    fetch.add_argument("model", help="smollm2-135m")

    commands.declare(add)

    memory = add("memory", _memory, "what a fine-tuning run will need, from the model's configuration alone")
    memory.add_argument("model", help="gpt3-175b, llama-7b, ..., embedded, or a folder with a config.json")
    memory.add_argument("--adapter", nargs="+", default=["full", "lora", "qlora"], metavar="WAY",
                        help="full, lora, qlora (default: all three)")  # fmt: skip
    memory.add_argument("--batch", type=int, default=1, help="sequences a step (default 1)")
    memory.add_argument("--seq", type=int, default=512, help="tokens a sequence (default 512)")
    memory.add_argument("--r", type=int, default=8, help="rank of the adapters (default 8)")
    memory.add_argument("--target-modules", nargs="+", help="layers with an adapter (default: all linear)")
    memory.add_argument("--dtype", default="float32", help="of weights and activations (default float32, as here)")
    memory.add_argument("--checkpointing", action="store_true", help="keep only the input of each layer")
    memory.add_argument("--lora-dropout", type=float, default=0.0, help="above 0: with its masks (default 0)")
    memory.add_argument("--svg", metavar="FILE", help="also write the picture")

    bench = add("bench", _bench, "measure speed: ratios in one process")
    bench.add_argument("subject", choices=["train", "quant", "gpu"], help="gpu: the CUDA kernels; needs a GPU and CuPy")
    bench.add_argument("--size", type=int, help="quant: how many float32 (default 16,777,216)")

    kernels = add("kernels", _kernels, "the CUDA kernels without a GPU: machine code, and counts of the simulated one")
    kernels.add_argument("what", choices=["report"], help="exit code 1 if a gate fails")
    kernels.add_argument("--arch", nargs="+", type=int, default=[75, 80, 90, 120], metavar="N",
                         help="compute capabilities to compile for (default: 75 80 90 120)")  # fmt: skip
    kernels.add_argument("--json", metavar="FILE", help="write all figures")
    kernels.add_argument("--markdown", metavar="FILE", help="a page: renew the tables between its markers")
    kernels.add_argument("--svg", metavar="FILE", help="write the picture")

    experiment = add("experiment", _experiment, "rerun a study: tables, pictures, and its results as JSON")
    names = {"quant-error": "how far quantized weights lie from the weights", **EXPERIMENTS}
    listed = "; ".join(f"{name}: {asks}" for name, asks in names.items())
    experiment.add_argument("study", choices=names, metavar="NAME", help=listed)
    experiment.add_argument("--output-dir", "--output_dir", help="where to write (default: the study's name)")
    experiment.add_argument("--overwrite", action="store_true", help="write into an output folder that is not empty")
    experiment.add_argument("--seeds", type=int, help="how many seeds, 0, 1, .. (default: the experiment's own number)")
    experiment.add_argument("--seed", type=int, help="of quant-error, which takes one (default 0)")
    experiment.add_argument("--quick", action="store_true", help="less of everything, under a minute; claims nothing")
    levels = "quant-error: study a 4-bit code of yours too: its levels, from -1 to 1, in a JSON file"
    experiment.add_argument("--code", action="append", default=[], metavar="NAME=FILE", help=levels)

    add("doctor", _doctor, "what this machine has and lacks")
    return parser


def _overrides(args) -> dict:
    given = {"output_dir": args.output_dir, "seed": args.seed, "max_steps": args.max_steps}
    return {name: value for name, value in given.items() if value is not None}


def _say(line: str):
    print(line, flush=True)


def _demo(args):
    from pathlib import Path

    from minilora import demo
    from minilora.config import load_recipe
    from minilora.tables import format_table

    config = load_recipe("demo", _overrides(args))
    ours = (Path(config.output_dir) / "result.json").exists() or (Path(config.output_dir) / "metrics.jsonl").exists()
    demo.run_recipe("demo", _overrides(args), _say, overwrite=ours)
    if args.compare:
        demo.compare(_overrides(args), _say)
    elif demo.stored_comparison():
        _say("\nmeasured by the authors (minilora demo --compare measures them here):")
        _say(format_table(demo.comparison_rows(demo.stored_comparison())))


def _train(args):
    from minilora import demo
    from minilora.config import load_recipe

    overrides = _parse_keys(args.keys) | _overrides(args)
    config = load_recipe(args.recipe, overrides)
    if args.show_batch or args.dry_run:
        from minilora.train import plan

        colour = sys.stdout.isatty()
        _say(plan.first_batch(config, colour) if args.show_batch else "\n".join(plan.plan(config)))
        return
    if config.pretrain is None:
        result = demo.run_recipe(args.recipe, overrides, _say, args.overwrite)
        if result.training.interrupted:
            _say(f"interrupted after {result.training.steps} steps; the adapter so far is saved")
        return
    from minilora.train.pretrain import pretrain

    training = {
        "max_steps": config.max_steps, "per_device_train_batch_size": config.micro_batch_size,
        "optim": config.optimizer, "learning_rate": config.learning_rate, "lr_scheduler_type": config.lr_scheduler,
        "warmup_steps": config.warmup_steps, "weight_decay": config.weight_decay, "adam_beta2": config.adam_beta2,
        "seed": config.seed, "save_steps": 200, "overwrite_output_dir": args.overwrite,
    }  # fmt: skip
    card = pretrain(config.output_dir, config.pretrain, config.sequence_len, training)
    _say(f"held-out: {card['bits_per_byte_held-out']:.3f} bits per byte; wrote {config.output_dir}/")


def _parse_keys(words: list[str]) -> dict:
    """["--learning_rate", "1e-3", "--adapter=lora"] -> {"learning_rate": 0.001, "adapter": "lora"}: YAML values."""
    import yaml

    keys, words = {}, list(words)
    while words:
        name, equals, value = words.pop(0).partition("=")
        if not name.startswith("--") or not (equals or words):
            raise ConfigError(f"{name}: a key of the recipe is given as --key value")
        value = value if equals else words.pop(0)
        try:
            keys[name.removeprefix("--").replace("-", "_")] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError) as error:
            raise ConfigError(f"{name} {value}: {value!r} is not a YAML value") from error
    return keys


def _dataset(args):
    from minilora.data.export import export

    kind = export(args.name, args.split, args.output)
    _say(f"wrote {args.output}; in a configuration:\ndatasets:\n  - path: {args.output}\n    type: {kind}")


def _fetch(args):
    from minilora.models.fetch import fetch

    fetch(args.model, lambda line: print(line, file=sys.stderr, flush=True))


def _memory(args):
    from pathlib import Path

    from minilora import memory
    from minilora.viz.charts import standalone

    model = memory.named(args.model)
    options = {"batch": args.batch, "seq": args.seq, "r": args.r, "target_modules": args.target_modules or "all-linear",
               "dtype": args.dtype, "checkpointing": args.checkpointing, "lora_dropout": args.lora_dropout}  # fmt: skip
    needs = {way: memory.estimate(model, way, **options) for way in args.adapter}
    _say(f"{args.model}, {args.batch} x {args.seq} tokens, {args.dtype}")
    _say("\n".join(memory.table(needs)))
    if args.svg:
        Path(args.svg).write_text(standalone(memory.picture(needs, f"Memory to fine-tune {args.model}")))


def _bench(args):
    from minilora.bench import gpu, peers, quant, train

    if args.subject == "gpu":
        gpu.main()
    elif args.subject == "train":
        train.main()
        peers.main()
    else:
        quant.main(quant.SIZE if args.size is None else args.size)


def _kernels(args):
    from minilora.bench.kernel_tables import report
    from minilora.bench.kernels import results

    return 0 if report(results(args.arch), args.json, args.markdown, args.svg, _say) else 1


def _experiment(args):
    import shlex

    common = {"quick": args.quick, "overwrite": args.overwrite, "say": _say,
              "command": f"minilora {shlex.join(sys.argv[1:])}"}  # fmt: skip
    folder = args.output_dir or args.study
    if args.study == "quant-error":
        from minilora.experiments import quant_error

        if args.seeds is not None:
            raise ConfigError("quant-error takes one seed: --seed")
        quant_error.register_files(args.code)
        quant_error.run(folder, seed=args.seed or 0, **common)
        return
    from minilora.experiments import study

    if args.seed is not None or args.code:
        raise ConfigError("--seed and --code are quant-error's; the other experiments take --seeds, how many")
    study.run(args.study, folder, seeds=args.seeds, **common)


def _doctor(args):
    from minilora.doctor import report

    print("\n".join(report()))
