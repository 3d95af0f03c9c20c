"""A recipe becomes a checked configuration, or one line a mistake; nothing heavy is imported for it."""

from __future__ import annotations

import copy
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accel_kd.config import RunConfig, load_recipe, recipe_names, recipe_text, to_yaml
from accel_kd.config.objective_section import hidden_states_term
from accel_kd.errors import UserError

MINIMAL = "data: {path: d}\nteacher: {model: t}\nstudent: {init: teacher_layers}\n"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """The least that a recipe must hold."""
    path = tmp_path / "mine.yaml"
    path.write_text(MINIMAL)
    return path


def mistakes(recipe: Path | str, *overrides: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        load_recipe(str(recipe), overrides)
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("dta.path=x", "dta: unknown; did you mean data?"),
        ("training.learning_rat=1", "training.learning_rat: unknown; did you mean learning_rate?"),
        ("training.temperature=1", "training.temperature: unknown; did you mean objective.temperature?"),
        ("training.model=x", "training.model: unknown; did you mean teacher.model or student.model?"),
        ("data.splits.tset=x", "data.splits.tset: unknown; did you mean test?"),
        ("teacher.finetune.epoch=1", "teacher.finetune.epoch: unknown; did you mean epochs?"),
        ("task.zzz=1", "task.zzz: unknown; known here: type"),
        (
            "objective.terms=[{type: logit_mse}, {type: jensen_shannon, bta: 1}]",
            "objective.terms.1.jensen_shannon.bta: unknown; did you mean beta?",
        ),
        (
            "objective.terms=[{type: logit_mse, temperature: 1}]",
            "objective.terms.0.logit_mse.temperature: unknown; did you mean objective.temperature?",
        ),
        ("teacher.encoding=full", "teacher.encoding: unknown; did you mean teacher.store.encoding?"),
        ("teacher.path=x", "teacher.path: unknown; did you mean data.path or teacher.store.path?"),
        ("teacher.store.pth=x", "teacher.store.pth: unknown; did you mean path?"),
        ("teacher.store.encoding.k=8", "teacher.store.encoding.k: unknown for full; it is a setting of type top_k"),
        (
            "teacher.store.encoding={type: top_k, dtype: float32}",
            "teacher.store.encoding.dtype: unknown for top_k; it is a setting of type full",
        ),
        (
            "teacher.store.encoding={type: top_k, temperature: 2}",
            "teacher.store.encoding.temperature: unknown for top_k; did you mean temperatures?",
        ),
        (
            "teacher.store.encoding={type: sampled, shard_rows: 2}",
            "teacher.store.encoding.shard_rows: unknown for sampled; did you mean teacher.store.shard_rows?",
        ),
        ("teacher.store.encoding.full=1", "teacher.store.encoding.full: unknown for full; known here: type, dtype"),
    ],
)
def test_an_unknown_key_is_refused_with_the_one_that_was_probably_meant(
    recipe: Path, override: str, expected: str
) -> None:
    assert mistakes(recipe, override) == [expected]


def test_every_mistake_is_told_at_once(recipe: Path) -> None:
    found = mistakes(recipe, "training.epochs=0", "training.epoch=1", "objective.beta=2")
    assert [line.partition(":")[0] for line in found] == ["objective.beta", "training.epochs", "training.epoch"]


@pytest.mark.parametrize(
    ("override", "section", "setting", "value"),
    [
        ("training.learning_rate=2e-5", "training", "learning_rate", 2e-5),  # to YAML a text
        ("training.learning_rate=2.0e-5", "training", "learning_rate", 2e-5),
        ("training.weight_decay=0", "training", "weight_decay", 0.0),
        ("training.precision=no", "training", "precision", "no"),  # to YAML false
        ("training.precision=null", "training", "precision", None),
        ("training.max_grad_norm=", "training", "max_grad_norm", None),
        ("training.seed=1_000", "training", "seed", 1000),
        ("run.control=yes", "run", "control", True),
        ("run.directory=a=b", "run", "directory", "a=b"),
        ("student.layers=3", "student", "layers", 3),
        ("student.layers=[0, 2, 5]", "student", "layers", [0, 2, 5]),
        ("tracking.tags=[a, b c]", "tracking", "tags", ["a", "b c"]),
        ("teacher.revision='1.0'", "teacher", "revision", "1.0"),
    ],
)
def test_overrides_are_read_as_yaml(recipe: Path, override: str, section: str, setting: str, value: Any) -> None:
    assert getattr(getattr(load_recipe(str(recipe), [override]), section), setting) == value


@pytest.mark.parametrize(
    ("overrides", "encoding"),
    [
        ([], {"type": "full", "dtype": "float16"}),
        (["dtype=float32"], {"type": "full", "dtype": "float32"}),
        (["type=top_k"], {"type": "top_k", "k": 64, "value_bits": 16, "temperatures": [1.0, 2.0]}),
        (["type=top_k", "k=8"], {"type": "top_k", "k": 8, "value_bits": 16, "temperatures": [1.0, 2.0]}),
        (["k=8", "type=top_k", "value_bits=8", "temperatures=[4]"],
         {"type": "top_k", "k": 8, "value_bits": 8, "temperatures": [4.0]}),
        (["type=sampled", "seed=7"], {"type": "sampled", "num_samples": 64, "temperature": 1.0, "seed": 7}),
    ],
)  # fmt: skip
def test_an_encoding_is_chosen_and_set_by_overrides_on_a_recipe_that_says_nothing_of_it(
    recipe: Path, overrides: list[str], encoding: dict[str, Any], tmp_path: Path
) -> None:
    config = load_recipe(str(recipe), [f"teacher.store.encoding.{override}" for override in overrides])
    assert config.teacher.store.encoding.model_dump() == encoding
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(to_yaml(config))
    assert load_recipe(str(resolved)).teacher == config.teacher


def test_a_mistake_in_a_setting_of_an_encoding_is_told_by_the_key_that_sets_it(recipe: Path) -> None:
    key = "teacher.store.encoding"
    assert mistakes(recipe, f"{key}.type=top_k", f"{key}.k=0", f"{key}.temperatures=[1, 0]") == [
        f"{key}.k: input should be greater than or equal to 1; found 0",
        f"{key}.temperatures.1: input should be greater than 0; found 0",
    ]


@pytest.mark.parametrize(
    "setting", ["training.epochs", "objective.alpha", "training.seed", "student.layers", "teacher.store.shard_rows"]
)
def test_yes_is_no_number(recipe: Path, setting: str) -> None:
    assert mistakes(recipe, f"{setting}=yes") == [f"{setting}: must be a number; found True"]


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("90", 90.0), ("120s", 120.0), ("2m", 120.0), ("1.5h", 5400.0), ("' 30 s '", 30.0), ("null", None)],
)
def test_a_duration_is_a_number_of_seconds_or_has_its_unit(recipe: Path, written: str, seconds: float | None) -> None:
    assert load_recipe(str(recipe), [f"run.stop_before={written}"]).run.stop_before == seconds


@pytest.mark.parametrize("written", ["soon", "2d", "-5s", "0", "yes", "1h30m", "[]", "inf"])
def test_what_is_no_duration_is_refused_by_name(recipe: Path, written: str) -> None:
    (mistake,) = mistakes(recipe, f"run.stop_before={written}")
    assert mistake.startswith("run.stop_before: ")


def test_the_best_weights_must_be_kept_where_they_are_exported(recipe: Path) -> None:
    (mistake,) = mistakes(recipe, "checkpoint.keep_best=0")
    assert mistake.startswith("checkpoint.keep_best: 0, but evaluation.keep is best")
    assert load_recipe(str(recipe), ["checkpoint.keep_best=0", "evaluation.keep=last"]).checkpoint.keep_best == 0


def test_a_later_override_replaces_an_earlier_one_and_null_leaves_a_section_for_the_next(recipe: Path) -> None:
    assert load_recipe(str(recipe), ["training.epochs=2", "training.epochs=3"]).training.epochs == 3
    config = load_recipe(str(recipe), ["teacher.finetune=null", "teacher.finetune.epochs=3"])
    assert config.teacher.finetune is not None and config.teacher.finetune.epochs == 3


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("data: {path: d}\ndata: {path: e}\n", "at line 2: the key 'data' stands twice"),
        ("data:\n  path: d\n  splits:\n    test: a\n    test: a\n", "at line 5: the key 'test' stands twice"),
        ("objective:\n  terms:\n  - {type: logit_mse, type: logit_mse}\n", "at line 3: the key 'type' stands twice"),
        ("objective:\n  terms:\n  - {layers: {1: 2, 1: 3}}\n", "at line 3: the key 1 stands twice"),
        ("data: {? [1] : 2}\n", "at line 1: found unhashable key"),
        ("data: !!timestamp x\n", ": "),
        ("data: !!python/object:os.system x\n", "at line 1: could not determine a constructor"),
        ("data: " + "[" * 2000, ": maximum recursion depth exceeded"),
    ],
)
def test_what_is_no_sound_yaml_is_refused_with_its_line(tmp_path: Path, text: str, place: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    [line] = mistakes(path)
    assert line.startswith(f"recipe {str(path)!r} is not valid YAML") and place in line


def test_a_key_that_replaces_a_merged_one_is_not_twice_there(tmp_path: Path) -> None:
    path = tmp_path / "merged.yaml"
    path.write_text(
        "data: {path: d}\nteacher: &model {model: t, revision: v1, allow_pickle: true}\n"
        "student:\n  <<: *model\n  model: s\n  revision: v2\n"
    )
    student = load_recipe(str(path)).student
    assert (student.model, student.revision, student.allow_pickle) == ("s", "v2", True)


def test_the_run_directory_is_named_after_the_recipe_unless_it_is_given(recipe: Path) -> None:
    assert load_recipe(str(recipe)).run.directory == "runs/mine"
    assert load_recipe("demo").run.directory == "runs/demo"
    assert load_recipe("demo", ["run.directory=elsewhere"]).run.directory == "elsewhere"


def test_what_a_recipe_leaves_out_has_its_default(recipe: Path) -> None:
    config = load_recipe(str(recipe))
    assert (config.objective.alpha, config.objective.temperature, config.objective.divergence) == (0.5, 2, "forward_kl")
    assert (config.training.epochs, config.training.batch_size, config.training.learning_rate) == (5, 48, 2e-5)
    assert config.teacher.allow_pickle is False and config.teacher.trust_remote_code is False
    teacher, store = config.teacher, config.teacher.store
    assert (teacher.source, teacher.on_missing, teacher.attention) == ("streaming", "build", None)
    assert (store.path, store.shard_rows, store.tokens_per_batch, store.canary_rows) == ("stores", 4096, 8192, 16)
    assert config.objective.on_wrong_teacher == "keep" and config.tracking.texts is False


def test_pairs_of_layers_are_the_same_however_they_are_written_and_however_often(recipe: Path, tmp_path: Path) -> None:
    written = ["{1: 2, 3: -1, -1: 6}", "{-1: 6, '3': -1, 1: 2}"]
    loaded = []
    for number, layers in enumerate(written):
        config = load_recipe(str(recipe), [f"objective.terms=[{{type: hidden_states, layers: {layers}}}]"])
        again = tmp_path / f"{number}.yaml"
        again.write_text(to_yaml(config))
        loaded += [config, load_recipe(str(again))]
    for config in loaded:
        term = hidden_states_term(config.objective)
        assert term is not None and term.pairs == ((-1, 6), (1, 2), (3, -1))
        assert config.objective.model_dump(mode="json") == loaded[0].objective.model_dump(mode="json")


def test_the_last_layers_are_compared_unless_others_are_named(recipe: Path) -> None:
    term = hidden_states_term(load_recipe(str(recipe), ["objective.terms=[{type: hidden_states}]"]).objective)
    assert term is not None and (term.pairs, term.distance, term.projection) == (((-1, -1),), "mse", "auto")
    idle = load_recipe(str(recipe), ["objective.terms=[{type: hard_label}, {type: hidden_states, weight: 0}]"])
    assert hidden_states_term(idle.objective) is None
    assert hidden_states_term(load_recipe(str(recipe)).objective) is None


def test_a_shipped_recipe_wins_over_a_file_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("demo").write_text("- no recipe")
    assert recipe_text("demo").startswith("# The whole job")


@pytest.mark.parametrize("name", recipe_names())
def test_a_resolved_recipe_gives_the_same_configuration_again(name: str, tmp_path: Path) -> None:
    config = load_recipe(name)
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(to_yaml(config), encoding="utf-8")
    again = load_recipe(str(resolved))
    assert again.model_dump() == config.model_dump()
    assert to_yaml(again) == to_yaml(config)


def test_reading_a_recipe_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from accel_kd.config import load_recipe; load_recipe('demo'); "
        "print(sorted({'torch', 'numpy', 'transformers', 'accelerate', 'datasets', 'wandb'} & set(sys.modules)))"
    )
    beneath = "import pydantic, yaml; pydantic.create_model('Empty')"
    seconds: dict[str, list[float]] = {code: [], beneath: []}
    for _ in range(3):
        for each in seconds:
            started = time.monotonic()
            process = subprocess.run([sys.executable, "-c", each], capture_output=True, text=True, check=True)
            seconds[each].append(time.monotonic() - started)
            assert process.stdout.strip() in ("[]", "")
    assert min(seconds[code]) < 5 * min(seconds[beneath]), "beside what it is made of"


_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.dates()
    | st.binary(max_size=3)
    | st.sampled_from(["", "no", "2e-5", "nan", "-inf", "1" * 5000, "teacher_layers", "forward_kl", "\x00", "ä"])
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=3),
    max_leaves=5,
)
_RECIPES = [yaml.safe_load(recipe_text(name)) for name in recipe_names()] + [
    {**yaml.safe_load(MINIMAL), "objective": {"terms": [{"type": "hard_label"}, {"type": "logit_mse", "weight": 2}]}},
    {
        **yaml.safe_load(MINIMAL),
        "teacher": {
            "model": "t",
            "source": "cached",
            "store": {"path": "s", "encoding": {"type": "top_k", "k": 8, "temperatures": [2]}},
        },
    },
]
_KEYS = sorted({key for section in RunConfig.model_fields.values() for key in section.annotation.model_fields})
_STORE_KEYS = ["encoding", "encoding.type", "encoding.k", "encoding.full", "encoding.temperatures", "path", "k", "type"]
_ENCODINGS = ["top_k", "8", "{type: sampled, k: 1}", "[1, 0]", "{}"]


def _containers(node: Any) -> list[Any]:
    """Every mapping and list within `node`, itself included."""
    inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else []
    return ([node] if isinstance(node, (dict, list)) else []) + [found for part in inner for found in _containers(part)]


@st.composite
def _spoilt_recipes(draw: st.DrawFn) -> Any:
    recipe = copy.deepcopy(draw(st.sampled_from(_RECIPES)))
    for _ in range(draw(st.integers(1, 3))):
        target = draw(st.sampled_from(_containers(recipe)))
        if isinstance(target, list):
            target.append(draw(_VALUES))
            continue
        there = st.sampled_from(sorted(target, key=str)) if target else st.nothing()
        target[draw(there | st.sampled_from(_KEYS) | st.text(max_size=5) | st.integers())] = draw(_VALUES)
    return recipe


def assert_sound_or_explained(recipe: str, *overrides: str) -> None:
    """Anything but a configuration or a `UserError` goes through, and fails the test."""
    outcome: RunConfig | UserError
    try:
        outcome = load_recipe(recipe, overrides)
    except UserError as error:
        outcome = error
    assert isinstance(outcome, RunConfig) or all(line.strip() for line in str(outcome).split("\n"))


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(spoilt=_spoilt_recipes())
def test_whatever_a_recipe_holds_it_is_a_configuration_or_a_mistake_of_the_users(
    spoilt: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "spoilt.yaml"
    path.write_text(yaml.safe_dump(spoilt, allow_unicode=True), encoding="utf-8")
    assert_sound_or_explained(str(path))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(override=st.text(max_size=30) | st.builds("{}.{}={}".format, st.sampled_from(list(RunConfig.model_fields)),
                                                st.sampled_from(_KEYS), st.text(max_size=12))
       | st.builds("teacher.store.{}={}".format, st.sampled_from(_STORE_KEYS),
                   st.text(max_size=12) | st.sampled_from(_ENCODINGS)))  # fmt: skip
def test_whatever_an_override_is_it_is_a_configuration_or_a_mistake_of_the_users(override: str) -> None:
    assert_sound_or_explained("demo", override)
