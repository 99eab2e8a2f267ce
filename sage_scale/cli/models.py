"""`sage-scale models`: the parts of a recipe's model, and a trained one as a folder to hand on or as plain models."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from sage_scale.cli import Overrides, RecipeToShow
from sage_scale.storage import on_this_machine
from sage_scale.untrusted.printer import console, echo

app = typer.Typer(add_completion=False, no_args_is_help=True)


@app.callback()
def models() -> None:
    """The models of a recipe."""


@app.command()
def describe(
    recipe: RecipeToShow,
    overrides: Overrides = None,
) -> None:
    """Parameters of each part, total and trained in each stage; nothing is downloaded."""
    from rich.table import Table

    from sage_scale.config import load_recipe
    from sage_scale.registry import model_spec

    chosen = load_recipe(recipe, overrides or ())
    spec = model_spec(chosen.model.kind)
    parts = spec.part("describe")(chosen)
    table = Table(title=f"recipe {chosen.name}", title_justify="left")
    table.add_column("part")
    for column in ("parameters", "trained in stage 1", "trained in stage 2"):
        table.add_column(column, justify="right")
    for part in parts:
        table.add_row(part.name, *(f"{count:,}" for count in (part.parameters, part.stage1, part.stage2)))
    table.add_section()
    totals = (sum(counts) for counts in zip(*((p.parameters, p.stage1, p.stage2) for p in parts)))
    table.add_row("total", *(f"{count:,}" for count in totals))
    if spec.describe_note:
        table.caption, table.caption_justify = spec.part("describe_note")(chosen), "left"
    console(sys.stdout, width=110).print(table)


@app.command()
def merge(
    run: Annotated[str, typer.Argument(help="A Sign2GPT: a run's folder, or its export (runs/NAME/model).")],
    out: Annotated[Path, typer.Option(help="Folder to write to; it must not exist or be empty.")],
) -> None:
    """Merge a Sign2GPT's adapters into plain models that transformers opens, as far as that goes."""
    from sage_scale.config import load_recipe
    from sage_scale.errors import UsageError
    from sage_scale.registry import model_spec
    from sage_scale.training.export import export_folder, load_translator

    on_this_machine(out, "a merged model")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"--out {out} is there already: give another folder")
    spec = model_spec(load_recipe(export_folder(run) / "recipe.yaml").model.kind)
    if spec.merge is None:  # told before a large model is read
        raise UsageError(
            f"{run} is a {spec.title}, which has no adapters: its language_model/ is a plain model already"
        )
    for line in spec.part("merge")(*load_translator(run), out):
        echo(line)


@app.command()
def export(
    run: Annotated[
        str, typer.Argument(help="A run with stage 2 trained (also s3://...), or its model/ folder.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write to; it must not exist or be empty.")],
    name: Annotated[str, typer.Option(help="Name on the card; else the folder's.")] = "",
    licence: Annotated[
        str, typer.Option(help="Licence of the model, an identifier of the hub: cc-by-nc-4.0.")
    ] = "",
    data_licence: Annotated[
        str, typer.Option(help="Licence of the training data, in words; else the corpus' own.")
    ] = "",
    half: Annotated[bool, typer.Option("--half", help="Store 16 bits a number: half the size.")] = False,
    push: Annotated[
        str,
        typer.Option(metavar="OWNER/NAME", help="Also upload it to this repository of the Hugging Face hub."),
    ] = "",
    private: Annotated[bool, typer.Option("--private", help="Make that repository private.")] = False,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data", help="Dataset of the training: for the card of a run of 0.1.0, which has none."
        ),
    ] = None,
) -> None:
    """Write a trained model as one folder with its card, which any machine opens: to hand on, or to publish."""
    from sage_scale.config import load_recipe
    from sage_scale.errors import UsageError
    from sage_scale.evaluation.stored import read_scores
    from sage_scale.streaming import open_datasets
    from sage_scale.text.hub import check_name, push_model
    from sage_scale.training.export import export_folder
    from sage_scale.training.familiarity import read_familiarity
    from sage_scale.training.model_card import add_scores, copy_card, read_card, write_card
    from sage_scale.training.model_readme import render_readme
    from sage_scale.training.run_place import HUB, model_folder
    from sage_scale.training.standalone import number_of_parameters, write_standalone

    on_this_machine(out, "an exported model")
    if push:
        check_name(push)
    folder = model_folder(run)
    source = export_folder(folder)
    if read_card(source) is None and not data:
        raise UsageError(
            f"{run} was exported by 0.1.0, without a card: give the dataset of its training, --data URL"
        )

    def finish(made: Path) -> None:
        if data:
            write_card(made, load_recipe(source / "recipe.yaml"), open_datasets(data))
            for split, entry in read_scores(folder).items():
                add_scores(made, split, entry)
        else:
            copy_card(source, made)
        card = read_card(made)
        assert card is not None
        text = render_readme(
            card, load_recipe(source / "recipe.yaml"), name or out.name, licence, data_licence,
            f"{HUB}{push}" if push else out.name, read_familiarity(made), number_of_parameters(made),
        )  # fmt: skip
        (made / "README.md").write_text(text, encoding="utf-8")

    write_standalone(source, out, half, finish)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    echo(f"{out}: {size / 1e6:,.0f} MB; README.md is the model card")
    if push:
        echo(push_model(out, push, private))


@app.command()
def signs(
    run: Annotated[Path, typer.Argument(help="Folder of a Sign2GPT's run with stage 1 trained.")],
    data: Annotated[str, typer.Option("--data", help="Dataset: a folder, file:// or s3://bucket/prefix.")],
    out: Annotated[str, typer.Option("--out", help="Folder, or s3://bucket/prefix, to write to.")],
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1.")] = "cpu",
) -> None:
    """Write a dataset's sign features Z once, so that stage 2 trains the decoder's adapters alone (Sign(Z)2GPT).

    Repeat it to go on where it was cut off.
    """
    from sage_scale.config import load_recipe
    from sage_scale.errors import UsageError
    from sage_scale.registry import model_spec
    from sage_scale.untrusted.progress import Progress

    recipe = on_this_machine(run, "a run") / "recipe.yaml"
    spec = model_spec(load_recipe(recipe).model.kind)
    if spec.write_features is None:
        raise UsageError(f"{run} has no sign encoder: it is a {spec.title}")
    with Progress("signs", "shards") as show:
        made, overrides = spec.part("write_features")(run, data, out, device, show)
    clips = sum(unit.samples for unit in made.units)
    echo(f"{made.url}: sign features of {clips:,} clips. Translate them with")
    echo(
        "sage-scale finetune --run ANOTHER_RUN "
        + shlex.join(["--data", out, "--recipe", str(recipe), *overrides])
    )
