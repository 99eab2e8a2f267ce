"""Any bytes given as a recipe are a recipe or one named line; nothing in them multiplies, nests or makes objects."""

from __future__ import annotations

import os
import time

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sage_scale.cli import main as command_line
from sage_scale.config import load_recipe, to_yaml
from sage_scale.errors import RecipeError
from sage_scale.untrusted.yaml_values import MAX_BYTES, InvalidYAML, parse_yaml

scalars = st.none() | st.booleans() | st.integers(-(2**62), 2**62) | st.floats(-1e18, 1e18) | st.text()
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4)
)


@given(values)
@settings(max_examples=50, deadline=None)
def test_what_yaml_writes_is_read_back(value):
    try:
        read = parse_yaml(yaml.safe_dump(value))
    except InvalidYAML as error:
        assert "NUL" in str(error)
    else:
        assert read == value


@given(st.binary(max_size=300) | st.text("[]{}&*!-?:,|>'\"\\ \n\tab0x_.~%@=#<", max_size=300).map(str.encode))
def test_any_bytes_are_a_value_or_one_reason(data):
    try:
        repr(parse_yaml(data))
    except InvalidYAML as error:
        assert 0 < len(str(error)) < 400


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: &a [x, x]\nb: [1, {c: *a}]", "b[1].c: aliases"),
        ("a: &a [*a]", "a[0]: aliases"),
        ("&a a: 1\n*a : 2", "aliases"),
        ("<<: &m {a: 1}\nb: {<<: *m}", "b.<<: aliases"),
        ("a: !!binary aGk=", "a: tags (!!binary)"),
        ("a: {b: !!set {c}}", "a.b: tags (!!set)"),
        ("a: [!!omap [b: 1]]", "a[0]: tags (!!omap)"),
        ("a: !!timestamp 2001-01-01", "a: tags (!!timestamp)"),
        ("a: !!python/object/apply:os.system [id]", "a: tags (!!python/"),
        ("a: !!bool maybe", "a: tags (!!bool)"),
        ("[" * 5_000, "more than 32 nested"),
        ("- " * 5_000, "more than 32 nested"),
        ("? " * 5_000, "more than 32 nested"),
        ("a: " + "{b: " * 60 + "1" + "}" * 60, "more than 32 nested"),
        ('a: {b: "\\ud800"}', "a.b: a lone surrogate"),
        ('a: "\\0"', "a: a NUL"),
        ('a: "\\UFFFFFFFF"', "a: not YAML"),
        ("x: 1\n" * 60_000, "bytes"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_what_is_refused_names_its_key(text, reason):
    begun = time.monotonic()
    with pytest.raises(InvalidYAML) as refused:
        parse_yaml(text)
    assert reason in str(refused.value) and len(str(refused.value)) < 250
    assert time.monotonic() - begun < 5


NO_NUMBERS = [
    "2001-99-99",
    "0x_",
    "0b_",
    "9" * 6_000,
    ".inf",
    "-.INF",
    ".nan",
    "nan",
    "infinity",
    "1e400",
    "9" * 400 + ".0",
    "1" + ":59" * 500,
    "٣٤٥٦٧٨٩٠١٢٣٤٥٦٧٨٩٠",
    "[1]",
    "{a: 1}",
    "!!binary aGk=",
    "!!set {1}",
    "&a 1e999",
    "[" * 3_000,
    '"\\ud800"',
    "yes",
]


@pytest.mark.parametrize("text", NO_NUMBERS)
@pytest.mark.parametrize("key", ["pretrain.batch_size", "pretrain.betas", "vision.fps"])
def test_a_value_that_is_no_finite_number_is_refused_with_its_key(capsys, key, text):
    if (key, text) == ("pretrain.betas", "[1]"):
        return
    assert command_line.run(["recipe", "show", "demo", f"{key}={text}"]) == 2
    line = capsys.readouterr().err
    assert key in line and len(line) < 400


@pytest.mark.parametrize("text", NO_NUMBERS[:12])
def test_the_same_in_a_file_and_kept_as_text_where_text_is_wanted(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(f"finetune:\n  lr: {text}\n")
    with pytest.raises(RecipeError, match=r"finetune\.lr=.{0,120}: must be a finite number"):
        load_recipe(path)
    path.write_text(f"corpus:\n  root: {text}\n")
    assert load_recipe(path).corpus.root == text


def test_only_a_regular_file_of_moderate_size_is_read(tmp_path):
    os.mkfifo(tmp_path / "fifo.yaml")
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "large.yaml").write_bytes(b"#" * (MAX_BYTES + 1))
    for name, reason in (
        ("fifo", "FIFO"),
        ("zero", "character device"),
        ("folder", "directory"),
        ("large", "bytes"),
    ):
        with pytest.raises(RecipeError, match=rf"{name}\.yaml.*{reason}"):
            load_recipe(tmp_path / f"{name}.yaml")


@pytest.mark.parametrize(
    "name", ["r" * 3_000, "r" * 3_000 + ".yaml", "a\0b", "a\0b.yaml", "../demo", "", "a\udcff"]
)
def test_a_name_that_can_be_no_recipe_is_one_short_line(name):
    with pytest.raises(RecipeError) as refused:
        load_recipe(name)
    assert len(str(refused.value)) < 600


def test_the_recipes_own_name_is_one_short_line(tmp_path):
    path = tmp_path / "mine.yaml"
    for text in ('"a\\eb"', '"a\\nb"', "x" * 3_000, '"a\\u202eb"'):
        path.write_text(f"name: {text}")
        with pytest.raises(RecipeError, match=r"name=.*one line of at most 100 characters"):
            load_recipe(path)


@given(st.text(st.characters(exclude_characters="\0", codec="utf-8")))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_shown_recipe_is_read_back_whatever_its_values(tmp_path, root):
    path = tmp_path / "mine.yaml"
    recipe = load_recipe("demo", [f"corpus.root={yaml.safe_dump(root, default_style=chr(34), width=10**6)}"])
    assert recipe.corpus.root == root
    shown = to_yaml(recipe)
    assert all(line.isprintable() for line in shown.split("\n"))
    path.write_text(shown, encoding="utf-8")
    assert load_recipe(path) == recipe


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("pretrain: {lr: 1, epochs: 2, lr: 3}", "pretrain: the key 'lr'"),
        ("vision:\n  fps: 25\nname: x\nvision:\n  size: 64\n", "the key 'vision'"),
        ("finetune:\n  augment:\n    flip: 0.1\n    'flip': 0.2\n", "finetune.augment: the key 'flip'"),
    ],
)
def test_a_key_that_stands_twice_is_refused(tmp_path, text, key):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=f"{key} occurs twice"):
        load_recipe(path)


@pytest.mark.parametrize(
    "text", ["no", "on", "010", "08", "1_000", "1:30", "0x10", "1.50", "true", "5", "=", "1e3"]
)
def test_text_is_kept_as_it_is_written(text):
    recipe = load_recipe("demo", [f"corpus.language={text}", f"corpus.languages=[{text}, de]"])
    assert recipe.corpus.language == text and recipe.corpus.languages == (text, "de")


@pytest.mark.parametrize(
    ("text", "number"),
    [("010", 10), ("1_000", 1000), ("+3", 3), ("1:30", None), ("0x10", None), ("0b1", None), ("1__0", None)],
)
def test_numbers_have_one_reading(text, number):
    for key in ("batch_size", "lr"):
        if number is None:
            with pytest.raises(RecipeError, match=rf"finetune\.{key}="):
                load_recipe("demo", [f"finetune.{key}={text}"])
        else:
            recipe = load_recipe("demo", [f"finetune.{key}={text}"])
            assert getattr(recipe.finetune, key) == number


@pytest.mark.parametrize("text", ["yes", "On", "TRUE", '"true"'])
def test_the_words_of_yaml_1_1_are_still_switches_where_a_switch_is_wanted(text):
    assert load_recipe("demo", [f"pretrain.compile={text}"]).pretrain.compile is True


@pytest.mark.parametrize(
    "change",
    ["evaluation.beams=0", "evaluation.max_tokens=-1", "pretrain.epochs=-1", "finetune.max_steps=-2",
     "finetune.max_minutes=-.5", "model.dropout=1.5", "finetune.label_smoothing=2", "model.conv_kernel=-1",
     "model.sign2gpt.heads=0", "denoise.heads=0", "model.backbone.widths=[8,-8,8,8]", "pretrain.betas=[.9,-.1]",
     "vision.source_fps=-25", "precompute.actors=-1", "stream.workers=-3"],
)  # fmt: skip
def test_a_number_out_of_its_range_is_refused_with_its_key(capsys, change):
    assert command_line.run(["recipe", "show", "demo", change]) == 2
    line = capsys.readouterr().err
    assert change.partition("=")[0] in line and line.count("\n") == 1 and "fault" not in line
