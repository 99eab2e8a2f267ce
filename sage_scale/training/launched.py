"""What `launch/pretrain.py` and `launch/finetune.py` do in each process that a launcher starts."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from sage_scale.config import load_recipe
from sage_scale.errors import SageError


def main(stage: str, arguments: Sequence[str] | None = None) -> int:
    """Run a stage with the arguments of the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog=f"launch/{stage}.py", allow_abbrev=False)
    parser.add_argument("--run", required=True, help="run folder, for instance runs/phoenix")
    parser.add_argument(
        "--data", required=True, action="append", help="folder or s3:// URL of the shards; several: repeat it"
    )
    parser.add_argument("--recipe", required=True, help="name of a recipe, or path to a YAML file")
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)  # some launchers add it
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes to the recipe")
    options = parser.parse_intermixed_args(arguments)
    try:
        recipe = load_recipe(options.recipe, options.overrides)
        if stage == "pretrain":
            from sage_scale.training.pretrain import run
        else:
            from sage_scale.training.finetune import run
        run(recipe, options.run, options.data)
    except SageError as error:
        print(f"sage-scale {stage}: {error}", file=sys.stderr)
        return error.exit_code
    finally:
        from sage_scale.training import distributed

        distributed.close()
    return 0
