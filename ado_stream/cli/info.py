"""Show what a prepared corpus holds: documents, bytes, tokens and samples of every domain.

With --policy, what a run would draw of each domain: epochs and tokens, as long as no loss moves the policy.
"""

import argparse

from ado_stream.cli.shared import add_corpus_argument, table_text
from ado_stream.corpus import load_manifest
from ado_stream.corpus.manifest import Manifest, missing_validation, num_samples
from ado_stream.errors import ConfigError
from ado_stream.option_checks import MOST_STEPS, whole
from ado_stream.visible import show, show_json
from ado_stream.yaml_files import parse_assignments

ONLY_WITH = {"--policy": ("--option", "--batch-size")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    add_corpus_argument(parser)
    parser.add_argument("--policy", metavar="NAME", help="plan a run under this policy, such as natural or unimax")
    parser.add_argument("--option", action="append", default=[], metavar="K=V", help="option of the policy; repeatable")
    parser.add_argument("--steps", type=int, metavar="N", help="steps of the planned run")
    parser.add_argument("--batch-size", type=int, default=32, metavar="B", help="its samples a step (32)")
    parser.add_argument("--json", action="store_true", help="print corpus.json, or the plan")


def run(args: argparse.Namespace) -> None:
    """Runs the verb."""
    manifest = load_manifest(args.corpus)
    if args.policy is None and args.steps is None:
        print_corpus(manifest, args.json)
    elif args.policy is None or args.steps is None:
        raise ConfigError("a planned run needs both --policy NAME and --steps N.")
    else:
        _print_plan(manifest, args)


def _print_plan(manifest: Manifest, args: argparse.Namespace) -> None:
    """Epochs and tokens of each domain over the run that the arguments plan."""
    from ado_stream.policy.base_policy import RunContext
    from ado_stream.policy.planned_draws import planned_samples
    from ado_stream.policy.policy_registry import make_run_policy

    whole("--steps", args.steps, 1, MOST_STEPS)
    whole("--batch-size", args.batch_size, 1)
    domains = manifest["domains"]
    sizes = {name: num for name, domain in domains.items() if (num := num_samples(domain, "train"))}
    options = parse_assignments(args.option, "--option", "--option start_step=500")
    guards = options.pop("guards", [])
    policy = make_run_policy(args.policy, sizes, options, guards, RunContext(args.steps, args.batch_size, 0, sizes))
    drawn = dict(zip(sizes, planned_samples(policy, args.steps, args.batch_size).tolist(), strict=True))
    plan = {
        name: {
            "epochs": drawn[name] / sizes[name],
            "tokens": round(drawn[name] * manifest["seq_len"]),
            "share": drawn[name] / (args.steps * args.batch_size),
        }
        for name in sorted(drawn, key=lambda name: -drawn[name] / sizes[name])
    }
    if args.json:
        show_json({"policy": args.policy, "steps": args.steps, "global_batch_size": args.batch_size, "domains": plan})
        return
    rows = [[name, f"{d['epochs']:.2f}", f"{d['tokens']:,}", f"{d['share']:.2%}"] for name, d in plan.items()]
    show(table_text(("domain", "epochs", "tokens", "share"), rows))
    show(f"{args.steps:,} steps of {args.batch_size} samples of {args.policy}, while no loss moves it")


def print_corpus(manifest: Manifest, as_json: bool) -> None:
    """corpus.json, or a table of the domains, largest first, and a line about the whole corpus."""
    if as_json:
        show_json(manifest)
        return
    domains = manifest["domains"]
    train_tokens = {
        name: domain["splits"]["train"]["tokens"] if "train" in domain["splits"] else 0
        for name, domain in domains.items()
    }
    total_tokens = sum(train_tokens.values())
    rows = [
        [
            name,
            f"{domains[name]['documents']:,}" if domains[name]["documents"] else "-",
            f"{domains[name]['bytes'] / 1e6:,.2f}" if domains[name]["bytes"] else "-",
            f"{train_tokens[name]:,}",
            f"{num_samples(domains[name], 'train'):,}",
            f"{train_tokens[name] / max(1, total_tokens):.2%}",
            f"{num_samples(domains[name], 'val'):,}",
        ]
        for name in sorted(train_tokens, key=lambda name: -train_tokens[name])
    ]
    show(table_text(("domain", "documents", "MB", "train tokens", "train samples", "share", "val samples"), rows))
    documents = sum(domain["documents"] for domain in domains.values())
    text_bytes = sum(domain["bytes"] for domain in domains.values())
    text = f"{documents:,} documents, {text_bytes / 1e6:,.1f} MB of text, " if text_bytes else ""  # else listed in YAML
    show(
        f"{len(domains)} domains, {text}"
        f"{total_tokens:,} training tokens; tokenizer {manifest['tokenizer']}, "
        f"vocabulary {manifest['vocab_size']:,}, samples of {manifest['seq_len'] + 1} tokens"
    )
    if manifest.get("packing"):
        show(_packing_text(manifest))
    if missing := missing_validation(domains):
        show(missing)
    if manifest.get("val_in_train"):
        show(
            f"{manifest['val_in_train']:,} validation documents have exactly the text of a training document; "
            "to leave those out, prepare with --drop-duplicates-of-val"
        )
    for reason, count in manifest.get("refused", {}).items():
        num_bytes = manifest.get("refused_bytes", {}).get(reason)
        show(f"left out: {count:,} x {reason}{f' ({num_bytes:,} bytes)' if num_bytes else ''}")


def _packing_text(manifest: Manifest) -> str:
    """What best-fit packing cut and padded, all splits together, beside what joining would have."""
    splits = [split for domain in manifest["domains"].values() for split in domain["splits"].values()]
    documents = max(1, sum(split["documents"] for split in splits))
    stored = max(1, sum(split["samples"] for split in splits) * (manifest["seq_len"] + 1))
    cut = sum(split.get("cut_documents", 0) for split in splits)
    joined = sum(split.get("cut_by_joining", 0) for split in splits)
    padding = sum(split.get("padding_tokens", 0) for split in splits)
    return (
        f"packing {manifest['packing']}: {cut / documents:.2%} of the documents cut (joined: "
        f"{joined / documents:.2%}), {padding / stored:.2%} of the stored tokens padding (joined: none)"
    )
